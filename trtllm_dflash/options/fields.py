"""Fields of option dataclasses: the command line and the checks come from their metadata."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, fields
from typing import Any

from trtllm_dflash.options.checks import check_choice, check_integer

# What others call the types of weights and caches.
DTYPE_NAMES = {
    "bf16": "bfloat16",
    "fp32": "float32",
    "f32": "float32",
    "fp8_e4m3": "fp8",
    "e4m3": "fp8",
}


def option_name(field_name: str) -> str:
    """Return the option of a field as it is typed: `--max-tokens` of `max_tokens`."""
    return f"--{field_name.replace('_', '-')}"


def cli_option(
    text: str,
    *,
    metavar: str | None = None,
    choices: Sequence[str] | None = None,
    low: int | None = None,
    high: int | None = None,
    aliases: Sequence[str] = (),
    other_values: Mapping[str, str] | None = None,
    parse: Callable[[str], str] | None = None,
    derived: bool = False,
) -> dict[str, Any]:
    """Return the metadata of a field that is an option of a command.

    Args:
        text: The help text.
        metavar: What the help shows for the value.
        choices: The values that are accepted.
        low: The smallest integer that is accepted.
        high: The largest one; it needs `low`.
        aliases: Older spellings, which work and are not shown. `--no-...` turns a flag off.
        other_values: Other names of choices, which work on the command line and are not shown.
        parse: Makes the value of what is typed on the command line: an architecture of a GPU's
            name. It raises UsageError for what it does not know.
        derived: The command line does not require it, and makes it from the other options.
    """
    given = {
        "metavar": metavar,
        "choices": choices,
        "low": low,
        "high": high,
        "other_values": other_values,
        "parse": parse,
    }
    return {
        "help": text,
        "aliases": tuple(aliases),
        "derived": derived,
        **{name: value for name, value in given.items() if value is not None},
    }


def check_fields(config: Any) -> None:
    """Check the choices and bounds that the fields of a dataclass declare; None is not checked.

    Raises:
        UsageError: for the first value outside them.
    """
    for field in fields(config):
        value = getattr(config, field.name)
        if value is not None:
            _check_field(field, value)


def _check_field(field: Field[Any], value: Any) -> None:
    name = option_name(field.name)
    metadata = field.metadata
    if "choices" in metadata:
        check_choice(name, value, metadata["choices"])
    if "low" in metadata:
        check_integer(name, value, low=metadata["low"], high=metadata.get("high"))
