"""The JSON of a profile, described and checked by what declares it (`result.py`)."""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from trtllm_dflash.profile.result import Profile

_NAMES = {
    int: "integer",
    float: "number",
    str: "string",
    bool: "boolean",
    type(None): "null",
    dict: "object",
}


def describe(kind: type = Profile, path: str = "") -> Iterator[tuple[str, str, str]]:
    """(path, type, meaning) of every key, in the file's order; `[]` in a path stands for each entry
    of a list.
    """
    for field, (hint, meaning) in _fields(kind):
        inner, name = _dataclass_in(hint), f"{path}{field}"
        yield name, _type_name(hint), meaning
        if inner is not None:
            yield from describe(
                inner, f"{name}[]." if get_origin(hint) in (list, tuple) else f"{name}."
            )


def check(data: Any, hint: Any = Profile, path: str = "profile") -> list[str]:
    """What in parsed JSON is not as declared, as sentences; [] if all is."""
    if is_dataclass(hint):
        assert isinstance(hint, type)
        return _check_object(data, hint, path)
    if get_origin(hint) in (Union, types.UnionType):
        choices = [check(data, choice, path) for choice in get_args(hint)]
        return [] if [] in choices else min(choices, key=len)
    if get_origin(hint) in (list, tuple):
        entries = get_args(hint)[0]
        if not isinstance(data, list):
            return [f"{path} is {type(data).__name__}, expected a list"]
        return [
            problem
            for index, entry in enumerate(data)
            for problem in check(entry, entries, f"{path}[{index}]")
        ]
    if get_origin(hint) is dict:
        return _check_mapping(data, get_args(hint)[1], path)
    if hint is Any:
        return []
    accepted = (int, float) if hint is float else hint
    if not isinstance(data, accepted) or (isinstance(data, bool) and hint is not bool):
        return [f"{path} is {data!r}, expected {_type_name(hint)}"]
    return []


def _check_object(data: Any, kind: type, path: str) -> list[str]:
    declared = dict(_fields(kind))
    if not isinstance(data, dict):
        return [f"{path} is {type(data).__name__}, expected an object"]
    problems = [f"{path}.{name} is missing" for name in declared if name not in data]
    problems += [f"{path}.{name} is not declared" for name in data if name not in declared]
    for name, (hint, _) in declared.items():
        problems += check(data[name], hint, f"{path}.{name}") if name in data else []
    return problems


def _check_mapping(data: Any, values: Any, path: str) -> list[str]:
    if not isinstance(data, dict):
        return [f"{path} is {type(data).__name__}, expected an object"]
    return [
        problem
        for name, value in data.items()
        for problem in check(value, values, f"{path}.{name}")
    ]


def _fields(kind: type) -> Iterator[tuple[str, tuple[Any, str]]]:
    """A dataclass's (name, (type, meaning))."""
    hints = get_type_hints(kind, include_extras=True)
    for field in fields(kind):
        hint = hints[field.name]
        meaning = next((text for text in get_args(hint)[1:] if isinstance(text, str)), "")
        yield field.name, (get_args(hint)[0] if get_origin(hint) is Annotated else hint, meaning)


def _dataclass_in(hint: Any) -> type | None:
    inner = get_args(hint)[0] if get_origin(hint) in (list, tuple) else hint
    return inner if isinstance(inner, type) and is_dataclass(inner) else None


def _type_name(hint: Any) -> str:
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_type_name(choice) for choice in get_args(hint))
    if get_origin(hint) in (list, tuple):
        return f"list of {_type_name(get_args(hint)[0])}s"
    if is_dataclass(hint) or hint is Any:
        return "object"
    return _NAMES[get_origin(hint) or hint]
