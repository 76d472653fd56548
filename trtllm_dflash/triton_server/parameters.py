"""Request parameters: what Triton makes of JSON keys that are no inputs, and gRPC's own.

Tensors that are no inputs are refused by Triton. Parameters are the model's to judge: a name that
it does not know is a wish that it would drop.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

import numpy as np

from trtllm_dflash.errors import UsageError
from trtllm_dflash.options.checks import shown
from trtllm_dflash.options.sampling import OTHER_NAMES
from trtllm_dflash.triton_server.io_table import ALL_INPUTS, INPUTS, Field

_MAX_NAME = 100  # characters: a longer one is like no input's, and comparing it takes long
# What Triton adds by itself, and headers that a server forwards if it was told to.
_OF_TRITON = frozenset({"id", "timeout", "binary_data_output", "headers"})
_PREFIXES_OF_TRITON = ("triton_", "sequence_")
_HEADERS = "accept authorization connection cookie forwarded from host origin referer te"
_HEADERS += " traceparent tracestate trailer upgrade via"
# Names of the same wish elsewhere, which look like no name of ours.
_SYNONYMS = OTHER_NAMES | {
    "echo": "exclude_input_in_output",
    "input": "text_input",
    "inputs": "text_input",
    "max_length": "max_tokens",
    "num_beams": "beam_width",
    "prompt": "text_input",
}
_EXPECTED: dict[str, tuple[Any, str]] = {
    "STRING": (str, "a text"),
    "BOOL": (bool, "true or false"),
    "INT32": (int, "an integer"),
    "UINT64": (int, "an integer"),
    "FP32": ((int, float), "a number"),
}


def values_of(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters that are the model's, as values of the inputs of these names.

    Raises:
        UsageError: for an unknown name, with the nearest known one and all of them; for a value of
            a wrong type.
    """
    values = {}
    for name, value in parameters.items():
        if name in ALL_INPUTS:
            values[name] = _typed(ALL_INPUTS[name], value)
        elif not _is_of_triton(name):
            raise UsageError(unknown_input(name))
    return values


def unknown_input(name: str) -> str:
    """Return what is wrong with a name that is no input."""
    near = nearest_input(name)
    advice = f"; did you mean {near}?" if near else "."
    known = ", ".join(field.name for field in INPUTS)
    told = name if name.isprintable() and len(name) <= _MAX_NAME else shown(name)
    return f"{told} is not an input of this model{advice} Its inputs are: {known}."


def nearest_input(name: str) -> str | None:
    """Return the input whose name is most like `name`, None if none is."""
    if len(name) > _MAX_NAME:
        return None
    plain = _normalized(name)
    if plain in ALL_INPUTS:
        return plain
    if plain in _SYNONYMS:
        return _SYNONYMS[plain]
    found = get_close_matches(plain, ALL_INPUTS, n=1, cutoff=0.7)
    return found[0] if found else None


def _normalized(name: str) -> str:
    """Return a name in the spelling of ours: `topP`, `top-p` and `Top_P` become top_p."""
    letters = []
    for place, letter in enumerate(name):
        after_small = place > 0 and name[place - 1].islower()
        letters.append(f"_{letter}" if letter.isupper() and after_small else letter)
    return "".join(letters).lower().replace("-", "_").removeprefix("sampling_param_")


def _is_of_triton(name: str) -> bool:
    """Return whether Triton adds a parameter of this name by itself."""
    if name in _OF_TRITON or name.startswith(_PREFIXES_OF_TRITON):
        return True
    is_header = name.lower() in _HEADERS.split() or "-" in name
    return is_header and nearest_input(name) is None


def _typed(field: Field, value: Any) -> Any:
    wanted, expected = _EXPECTED[field.dtype]
    is_flag = isinstance(value, bool)
    if not isinstance(value, wanted) or (is_flag and field.dtype != "BOOL"):
        raise UsageError(f"{field.name} is {shown(value)}, expected {expected}.")
    if field.dtype == "FP32":
        value = float(np.float32(value))
    return [value] if field.size == -1 else value


def resolve_aliases(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values under the inputs' own names; what the model does not have is checked.

    Raises:
        UsageError: for a value that this model does not have, or two that contradict each other.
    """
    resolved: dict[str, Any] = {}
    for name, value in values.items():
        field = ALL_INPUTS[name]
        if field.only is not None and not _is_only(value, field.only):
            raise UsageError(
                f"{name} is {_shown(value)}, and this model takes {field.meaning}."
            )
        own = field.alias_of or name
        if own in resolved and resolved[own] != value:
            raise UsageError(f"{own} is given twice, under two names, with two values.")
        resolved[own] = value
    return resolved


def _is_only(value: Any, accepted: Iterable[object]) -> bool:
    values = value if isinstance(value, list) else [value]
    return all(entry in accepted for entry in values)


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else repr(value)
