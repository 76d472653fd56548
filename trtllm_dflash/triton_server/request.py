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
from trtllm_dflash.triton_server.io_table import ALL_INPUTS, REQUIRED
from trtllm_dflash.triton_server.parameters import resolve_aliases, unknown_input, values_of

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
        cls,
        tensors: Mapping[str, NDArray[Any]],
        eos_token_ids: tuple[int, ...],
        parameters: Mapping[str, Any] | None = None,
    ) -> GenerationRequest:
        """Read the tensors of the table in `io_table.py`, and request parameters of those names.

        Triton has checked the types of tensors. It does not check which of them are there, how
        many values a tensor has, or what texts hold.

        Raises:
            UsageError: for a wrong tensor or an unknown parameter, with its name.
        """
        given = {name: _values(name, tensor) for name, tensor in tensors.items()}
        for name, value in values_of(parameters or {}).items():
            if name in given:
                raise UsageError(f"{name} is both an input and a parameter of this request.")
            given[name] = value
        values = resolve_aliases(given)
        if REQUIRED not in values:
            raise UsageError(f"{REQUIRED} is missing: there is no prompt to continue.")
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
    ignores_eos = values.get("ignore_eos") or values.get("end_id") == -1
    if "end_id" in values and values["end_id"] not in (-1, *eos_token_ids):
        own_tokens = ", ".join(map(str, eos_token_ids)) or "none"
        raise UsageError(
            f"end_id is {values['end_id']}, and this model's own stop tokens are {own_tokens}. Send"
            " stop_token_ids for more of them, and ignore_eos to leave its own out."
        )
    if ignores_eos or values.get("stop_token_ids"):
        own = () if ignores_eos else eos_token_ids
        options["stop_token_ids"] = (*own, *values.get("stop_token_ids", ()))
    return options


def _values(name: str, tensor: NDArray[Any]) -> Any:
    """Return the tensor's one value, or all of them if the table allows any number."""
    if name not in ALL_INPUTS:
        raise UsageError(unknown_input(name))
    values = [
        _text(name, value) if isinstance(value, bytes) else value
        for value in np.ravel(tensor).tolist()
    ]
    if ALL_INPUTS[name].size == -1:
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
