"""Command-line options made from a configuration dataclass, so that name, type, default and help
exist once.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import click

Function = TypeVar("Function", bound=Callable[..., Any])

_CLICK_TYPES: dict[type, click.ParamType[Any]] = {
    int: click.INT,
    float: click.FLOAT,
    str: click.STRING,
    Path: click.Path(path_type=Path),
}


def options_from(config: type) -> Callable[[Function], Function]:
    """Decorate a command with an option for every field of `config` that has a help text in its
    metadata.
    """

    def decorate(function: Function) -> Function:
        hints = get_type_hints(config)
        for field in reversed([field for field in fields(config) if "help" in field.metadata]):
            function = _option(field, hints[field.name])(function)
        return function

    return decorate


def _option(field: Field[Any], hint: Any) -> Callable[[Function], Function]:
    metadata, name = field.metadata, f"--{field.name.replace('_', '-')}"
    if _plain(hint) is bool:
        switch = f"{name}/--no-{name.removeprefix('--')}"
        return click.option(
            switch, default=field.default, help=metadata["help"], show_default=False
        )
    kind = (
        click.Choice(metadata["choices"]) if "choices" in metadata else _CLICK_TYPES[_plain(hint)]
    )
    default = {"required": True} if field.default is MISSING else {"default": field.default}
    return click.option(
        name, type=kind, metavar=metadata.get("metavar"), help=metadata["help"], **default
    )


def _plain(hint: Any) -> type:
    """int of `int | None`."""
    if get_origin(hint) in (Union, types.UnionType):
        (hint,) = (argument for argument in get_args(hint) if argument is not type(None))
    assert isinstance(hint, type)
    return hint
