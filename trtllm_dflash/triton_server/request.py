"""From a request's tensors to the options of `Engine.generate`; wrong ones raise UsageError."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtllm_dflash.errors import UsageError
from trtllm_dflash.options.checks import check_integer
from trtllm_dflash.options.row_sampling import SAMPLING_INPUTS
from trtllm_dflash.options.sampling import SamplingOptions
from trtllm_dflash.triton_server.io_table import INPUTS, REQUIRED

_SIZES = {field.name: field.size for field in INPUTS}
# Inputs that are options of `Engine.generate` under the same name.
_OPTION_NAMES = (*(row.name for row in SAMPLING_INPUTS), "seed", "draft", "draft_len")


@dataclass(frozen=True)
class GenerationRequest:
    """A request in plain Python: `options` are those of `Engine.generate`."""

    text: str
    chat: bool
    stream: bool
    echo: bool
    counts_input: bool
    counts_output: bool
    stop_words: tuple[str, ...]
    options: SamplingOptions

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, NDArray[Any]], eos_token_ids: tuple[int, ...]
    ) -> GenerationRequest:
        """Read the tensors of the table in `io_table.py`.

        Triton has checked their types. It does not check which of them are there, how many values
        a tensor has, or what texts hold.

        Raises:
            UsageError: for a wrong tensor, with its name.
        """
        values = {name: _values(name, tensor) for name, tensor in tensors.items()}
        if REQUIRED not in values:
            raise UsageError(f"{REQUIRED} is missing: there is no prompt to continue.")
        for name in ("frequency_penalty", "presence_penalty"):
            if values.get(name, 0):
                raise UsageError(
                    f"{name} is {values[name]:g}, and this model takes only 0: it has no penalties."
                )
        return cls(
            text=values[REQUIRED],
            chat=values.get("chat", False),
            stream=values.get("stream", False),
            echo=not values.get("exclude_input_in_output", True),
            counts_input=values.get("return_num_input_tokens", False),
            counts_output=values.get("return_num_output_tokens", False),
            stop_words=tuple(values.get("stop_words", ())),
            options=_options(values, eos_token_ids),
        )


def _options(values: Mapping[str, Any], eos_token_ids: tuple[int, ...]) -> SamplingOptions:
    if values.get("draft", True) is False and "draft_len" in values:
        raise UsageError("give either draft: false or draft_len, not both.")
    options = SamplingOptions()
    if "max_tokens" in values:
        check_integer("max_tokens", values["max_tokens"], low=1)
        options["max_tokens"] = values["max_tokens"]
    for name in _OPTION_NAMES:
        if name in values:
            options[name] = values[name]  # type: ignore[literal-required]
    if values.get("ignore_eos") or values.get("stop_token_ids"):
        own = () if values.get("ignore_eos") else eos_token_ids
        options["stop_token_ids"] = (*own, *values.get("stop_token_ids", ()))
    return options


def _values(name: str, tensor: NDArray[Any]) -> Any:
    """Return the tensor's one value, or all of them if the table allows any number."""
    if name not in _SIZES:
        raise UsageError(
            f"{name} is not an input of this model. Its inputs are: {', '.join(_SIZES)}."
        )
    values = [
        _text(name, value) if isinstance(value, bytes) else value
        for value in np.ravel(tensor).tolist()
    ]
    if _SIZES[name] == -1:
        return values
    if len(values) != 1:
        raise UsageError(f"{name} has {len(values)} values, expected one.")
    return values[0]


def _text(name: str, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{name} is not UTF-8: byte {error.start} begins no character."
        ) from error
