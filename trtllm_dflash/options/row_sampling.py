"""THE table of a row's sampling inputs: every other place that names them reads it.

A field of `RowSampling` gives an input of the step and of an operator, and the sessions' buffer.
It is also a field of `SamplingParams` with its check, an option of `run` and `profile`, and an
input of the Triton model. `graph/ops/sampling.py` and `plugins/kernels/accept_sample.cuh` define
what it does. Penalties, whose names end so, are DFlashAdjust's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any, TypedDict

from trtllm_dflash.errors import UsageError
from trtllm_dflash.options.checks import shown
from trtllm_dflash.options.fields import cli_option

MAX_INT32 = 2**31 - 1
MAX_FLOAT32 = (2 - 2**-23) * 2.0**127
MIN_FLOAT32 = 2.0**-126  # the smallest that no device takes for 0
MAX_PENALTY = 100.0  # OpenAI's interface ends at 2


class RowSamplingOptions(TypedDict, total=False):
    """The fields of `RowSampling` for type checkers; a test keeps the two equal."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    frequency_penalty: float
    presence_penalty: float


def _row_input(
    default: float | int, help_text: str, accepts: Callable[[float], bool], expected: str
) -> Any:
    """Declare a row of the table; `expected` describes the values that `accepts` takes."""
    metadata = cli_option(help_text) | {"accepts": accepts, "expected": expected}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class RowSampling:
    """How the tokens of one row are chosen; a value out of range raises UsageError.

    temperature  0 is greedy, and top_k, top_p and min_p are then unused; otherwise logits are
                 divided by it.
    top_k        keep this many most likely tokens, before top_p; 0 and -1 are off.
    top_p        keep the most likely tokens up to this mass, in (0, 1]; 1 is off.
    min_p        keep tokens of at least this part of the likeliest token's probability, after top_k
                 and top_p; 0 is off. This is the order of Hugging Face. vLLM begins with min_p,
                 which gives other tokens only beside top_p.

    Penalties come before all that, and change greedy answers too (`graph/ops/adjust.py`):

    repetition_penalty  logits of tokens of prompt and answer are divided by it where positive, else
                        multiplied; 1 is off. As in Hugging Face and vLLM.
    frequency_penalty   subtracted from a token's logit for each time that the answer has it; 0 is
                        off. As in OpenAI's interface and vLLM.
    presence_penalty    subtracted once from the logits of tokens of the answer; 0 is off.

    The default of each field is the value that changes nothing. An int is int32 in the step's
    inputs, a float is float32.
    """

    temperature: float = _row_input(
        0.0,
        "0: always the most likely token",
        lambda value: 0 <= value <= MAX_FLOAT32,
        "0 (greedy) or a finite positive number",
    )
    top_p: float = _row_input(
        1.0,
        "sample from this mass; 1: off",
        lambda value: 0 < value <= 1,
        "a number above 0 and at most 1",
    )
    top_k: int = _row_input(
        0,
        "sample from this many tokens; 0: off",
        lambda value: value >= -1,
        "an integer of at least 0",
    )
    min_p: float = _row_input(
        0.0,
        "sample from tokens of at least this part of the likeliest one's probability; 0: off",
        lambda value: 0 <= value <= 1,
        "a number from 0 to 1",
    )
    repetition_penalty: float = _row_input(
        1.0,
        "divide logits of tokens in prompt and answer, multiply negative ones; 1: off",
        lambda value: MIN_FLOAT32 <= value <= MAX_FLOAT32,
        "a finite number above 0",
    )
    frequency_penalty: float = _row_input(
        0.0,
        "subtract from a token's logit for each time that the answer has it; 0: off",
        lambda value: abs(value) <= MAX_PENALTY,
        f"a number from -{MAX_PENALTY:g} to {MAX_PENALTY:g}",
    )
    presence_penalty: float = _row_input(
        0.0,
        "subtract once from the logits of tokens that the answer has; 0: off",
        lambda value: abs(value) <= MAX_PENALTY,
        f"a number from -{MAX_PENALTY:g} to {MAX_PENALTY:g}",
    )

    def __post_init__(self) -> None:
        for row in SAMPLING_INPUTS:
            row.check(getattr(self, row.name))
        if self.top_k == -1:  # "off" of vLLM
            object.__setattr__(self, "top_k", 0)

    def row_values(self) -> dict[str, Any]:
        """Return the fields by name, as numbers that their type in the step can hold."""
        return {row.name: row.convert(getattr(self, row.name)) for row in SAMPLING_INPUTS}


@dataclass(frozen=True)
class SamplingInput:
    """A row of the table: an input of the step with one value for each row of the batch."""

    name: str
    default: float | int
    help: str
    accepts: Callable[[float], bool]
    expected: str

    @property
    def dtype(self) -> str:
        """Return the type of the step's input."""
        return "int32" if isinstance(self.default, int) else "float32"

    def check(self, value: Any) -> None:
        """Raise UsageError unless `value` is accepted."""
        number_type = Integral if self.dtype == "int32" else Real
        is_number = isinstance(value, number_type) and not isinstance(value, bool)
        if not is_number or not self.accepts(value):
            raise UsageError(f"{self.name} is {shown(value)}, expected {self.expected}.")

    def convert(self, value: float | int) -> float | int:
        """Return a checked value as a number of its type.

        int32 ends at 2^31 - 1. A positive number that float32 would flush to 0 stays positive.
        """
        if self.dtype == "int32":
            return min(int(value), MAX_INT32)
        size = abs(float(value))
        return math.copysign(max(size, MIN_FLOAT32), value) if size > 0 else 0.0


SAMPLING_INPUTS = tuple(
    SamplingInput(
        row.name,
        getattr(RowSampling, row.name),
        row.metadata["help"],
        row.metadata["accepts"],
        row.metadata["expected"],
    )
    for row in fields(RowSampling)
)
"""The table, in the order of the step's inputs."""

PENALTY_INPUTS = tuple(row for row in SAMPLING_INPUTS if row.name.endswith("_penalty"))
"""Those of DFlashAdjust, which changes logits by the text so far."""

CHOICE_INPUTS = tuple(row for row in SAMPLING_INPUTS if row not in PENALTY_INPUTS)
"""Those of DFlashAccept, which chooses."""
