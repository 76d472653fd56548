"""The JSON of a profile, described and checked by the classes that declare it (`result.py`).

It is written by hand and not with pydantic. The description needs the types anyway, and the
messages would need a table of pydantic's error types. That saves too little for a core dependency.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin, get_type_hints

from trtllm_dflash.profile.result import Profile

_JSON_TYPES = {
    int: "integer",
    float: "number",
    str: "string",
    bool: "boolean",
    type(None): "null",
    dict: "object",
}
_LISTS = (list, tuple)
_UNIONS = (Union, types.UnionType)


class KeyDescription(NamedTuple):
    """One key of the JSON; `[]` in a path stands for each entry of a list."""

    path: str
    json_type: str
    meaning: str


def describe(declared: type = Profile, path: str = "") -> Iterator[KeyDescription]:
    """Yield the description of every key, in the file's order."""
    for name, hint, meaning in _declared_fields(declared):
        is_list = get_origin(hint) in _LISTS
        inner = get_args(hint)[0] if is_list else hint
        yield KeyDescription(f"{path}{name}", _json_type(hint), meaning)
        if isinstance(inner, type) and is_dataclass(inner):
            yield from describe(inner, f"{path}{name}[]." if is_list else f"{path}{name}.")


def check(data: Any, hint: Any = Profile, path: str = "profile") -> list[str]:
    """Return a message for each difference of parsed JSON from what is declared."""
    origin = get_origin(hint)
    arguments = get_args(hint)
    if hint is Any:
        return []
    if is_dataclass(hint):
        assert isinstance(hint, type)
        return _check_object(data, hint, path)
    if origin in _UNIONS:
        choices = [check(data, choice, path) for choice in arguments]
        return min(choices, key=len)
    if origin in _LISTS:
        return _check_list(data, arguments[0], path)
    if origin is dict:
        return _check_mapping(data, arguments[1], path)
    if _is_scalar(data, hint):
        return []
    return [f"{path} is {data!r}, expected {_json_type(hint)}"]


def _is_scalar(data: Any, hint: type) -> bool:
    """Return whether data is of a plain type; a boolean is no number."""
    if isinstance(data, bool):
        return hint is bool
    if hint is float:
        return isinstance(data, (int, float))
    return isinstance(data, hint)


def _check_object(data: Any, declared: type, path: str) -> list[str]:
    """Return the differences of an object from a dataclass."""
    if not isinstance(data, dict):
        return [f"{path} is {type(data).__name__}, expected an object"]
    missing = []
    wrong = []
    undeclared = dict.fromkeys(data)
    for name, hint, _ in _declared_fields(declared):
        undeclared.pop(name, None)
        if name in data:
            wrong += check(data[name], hint, f"{path}.{name}")
        else:
            missing.append(f"{path}.{name} is missing")
    return [*missing, *(f"{path}.{name} is not declared" for name in undeclared), *wrong]


def _check_list(data: Any, entry_hint: Any, path: str) -> list[str]:
    """Return the differences of the entries of a list."""
    if not isinstance(data, list):
        return [f"{path} is {type(data).__name__}, expected a list"]
    problems = []
    for index, entry in enumerate(data):
        problems += check(entry, entry_hint, f"{path}[{index}]")
    return problems


def _check_mapping(data: Any, value_hint: Any, path: str) -> list[str]:
    """Return the differences of the values of an object."""
    if not isinstance(data, dict):
        return [f"{path} is {type(data).__name__}, expected an object"]
    problems = []
    for name, value in data.items():
        problems += check(value, value_hint, f"{path}.{name}")
    return problems


def _declared_fields(declared: type) -> Iterator[tuple[str, Any, str]]:
    """Yield (name, type, meaning) of a dataclass's fields."""
    hints = get_type_hints(declared, include_extras=True)
    for field in fields(declared):
        hint = hints[field.name]
        meaning = ""
        if get_origin(hint) is Annotated:
            hint, meaning, *_ = get_args(hint)
        yield field.name, hint, meaning


def _json_type(hint: Any) -> str:
    """Return the JSON name of a type."""
    origin = get_origin(hint)
    arguments = get_args(hint)
    if origin in _UNIONS:
        return " or ".join(_json_type(choice) for choice in arguments)
    if origin in _LISTS:
        return f"list of {_json_type(arguments[0])}s"
    if is_dataclass(hint) or hint is Any:
        return "object"
    return _JSON_TYPES[origin or hint]
