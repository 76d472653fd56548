"""Command-line options made from dataclasses, so that name, type, default and help exist once."""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import click
from click.core import ParameterSource

from trtllm_dflash.errors import UsageError
from trtllm_dflash.options.fields import option_name
from trtllm_dflash.options.sampling import (
    SamplingParams,
    no_effect_warning,
    unused_without_temperature,
)

# A field's name where the checks of SamplingParams put it.
_FIELD_IN_TEXT = re.compile(r"(?P<before>^|more than )(?P<name>[a-z_]+)(?= is | holds |,)")

Function = TypeVar("Function", bound=Callable[..., Any])
Config = TypeVar("Config")


class PathWithoutNul(click.Path):
    """A path; what no file system takes is refused before it is looked for."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Any:
        """Return the path that a text stands for."""
        if "\0" in str(value):
            self.fail("a path cannot hold the character NUL", param, ctx)
        return super().convert(value, param, ctx)


PATH = PathWithoutNul(path_type=Path)
_CLICK_TYPES: dict[type, click.ParamType[Any]] = {
    int: click.INT,
    float: click.FLOAT,
    str: click.STRING,
    Path: PATH,
}


class ConfigChoice(click.Choice[str]):
    """A choice in upper or lower case, with other names of values, which are not shown."""

    def __init__(self, choices: Sequence[str], other_values: Mapping[str, str]) -> None:
        """Make a choice as click does, with the present names of `other_values`."""
        super().__init__(choices, case_sensitive=False)
        self.other_values = other_values

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str:
        """Return the present name of a value that is one of the choices."""
        return super().convert(self.other_values.get(value.lower(), value), param, ctx)


class ParsedText(click.ParamType[str]):
    """A text whose value is what `parse` makes of it, which raises UsageError where it cannot."""

    name = "text"

    def __init__(self, parse: Callable[[str], str]) -> None:
        """Make a type of values from the function of an option's declaration."""
        self.parse = parse

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str:
        """Return the value that a text stands for."""
        del param, ctx
        return self.parse(value)


class ConfigOption(click.Option):
    """An option with older spellings, which work but are not shown."""

    def __init__(self, *args: Any, aliases: Sequence[str] = (), **kwargs: Any) -> None:
        """Make an option as click does, with `aliases` beside its own spelling."""
        super().__init__(*args, **kwargs)
        self.aliases = tuple(aliases)

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        """Make the parser know every spelling."""
        shown = self.opts, self.secondary_opts
        self.opts, self.secondary_opts = self._all_spellings()
        try:
            super().add_to_parser(parser, ctx)
        finally:
            self.opts, self.secondary_opts = shown

    def _all_spellings(self) -> tuple[list[str], list[str]]:
        """Return the spellings, and those that turn a flag off."""
        on = list(self.opts)
        off = list(self.secondary_opts)
        for alias in self.aliases:
            turns_off = self.is_flag and alias.startswith("--no-")
            (off if turns_off else on).append(alias)
        return on, off


def options_from(*configs: type) -> Callable[[Function], Function]:
    """Decorate a command with an option for every field of the dataclasses that has a help text."""

    def decorate(function: Function) -> Function:
        # click lists the option first that decorates last.
        for make_option in reversed(_options(configs)):
            function = make_option(function)
        return function

    return decorate


def _options(configs: Sequence[type]) -> list[Callable[[Function], Function]]:
    made = []
    for config in configs:
        hints = get_type_hints(config)
        # Inherited keyword-only fields come behind a command's own, as in its constructor.
        ordered = sorted(fields(config), key=lambda field: field.kw_only is True)
        shown = [field for field in ordered if "help" in field.metadata]
        made += [_option(field, hints[field.name]) for field in shown]
    return made


def take(config: type[Config], options: dict[str, Any]) -> Config:
    """Build a dataclass from those of a command's options that are its fields; removes them."""
    values = {}
    for field in fields(cast(Any, config)):
        if field.name in options:
            values[field.name] = options.pop(field.name)
    return config(**values)


def given_options(ctx: click.Context) -> dict[str, Any]:
    """Return the options that were typed, by parameter."""
    return {
        name: value
        for name, value in ctx.params.items()
        if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }


def warn_of_unused(ctx: click.Context) -> None:
    """Say on stderr which sampling options have no effect, since no temperature was typed."""
    unused = unused_without_temperature(given_options(ctx))
    if unused:
        names = [option_name(name) for name in unused]
        click.echo(f"warning: {no_effect_warning(names, '--temperature')}", err=True)


def check_sampling(options: Mapping[str, Any]) -> None:
    """Check keyword arguments of `Engine.stream`, before an engine is loaded for them.

    Without max_tokens there is no limit yet that min_tokens could exceed.

    Raises:
        UsageError: for a value out of range; the option is named as it is typed.
    """
    try:
        SamplingParams(**{"max_tokens": sys.maxsize, **options})
    except UsageError as error:
        raise UsageError(_FIELD_IN_TEXT.sub(_as_typed, str(error))) from error


def _as_typed(match: re.Match[str]) -> str:
    name = match["name"]
    is_option = name in {field.name for field in fields(SamplingParams)}
    return match["before"] + (option_name(name) if is_option else name)


def _option(field: Field[Any], hint: Any) -> Callable[[Function], Function]:
    metadata = field.metadata
    spelling = option_name(field.name)
    settings: dict[str, Any] = {
        "cls": ConfigOption,
        "help": metadata["help"],
        "aliases": metadata.get("aliases", ()),
    }
    if field.default is not MISSING:
        settings["default"] = field.default
    elif not metadata["derived"]:
        settings["required"] = True
    if get_origin(hint) is tuple:
        settings |= {"multiple": True, "type": _click_type(get_args(hint)[0], metadata)}
        return click.option(spelling, field.name, metavar=metadata.get("metavar"), **settings)
    plain, is_optional = _plain(hint)
    if plain is not bool:
        settings["type"] = _click_type(plain, metadata)
        settings["metavar"] = metadata.get("metavar")
        return click.option(spelling, field.name, **settings)
    settings["show_default"] = False
    if is_optional:
        switch = f"{spelling}/{option_name('no_' + field.name)}"
        return click.option(switch, field.name, **settings)
    return click.option(spelling, field.name, is_flag=True, **settings)


def _click_type(plain: type, metadata: Mapping[str, Any]) -> click.ParamType[Any]:
    if "parse" in metadata:
        return ParsedText(metadata["parse"])
    if "choices" in metadata:
        return ConfigChoice(metadata["choices"], metadata.get("other_values", {}))
    return _CLICK_TYPES[plain]


def _plain(hint: Any) -> tuple[type, bool]:
    """Return the first type of a hint, and whether None is in it: (int, True) of `int | None`."""
    members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    plain = members[0]
    assert isinstance(plain, type)
    return plain, type(None) in members
