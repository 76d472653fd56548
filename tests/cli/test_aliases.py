"""Older spellings of options: they work, and the help does not show them."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click
import pytest

from trtllm_dflash.cli import COMMANDS, main
from trtllm_dflash.cli.options import ConfigOption

# Command, older spelling, its value, the parameter, and the parameter's value.
ALIASES = [
    ("run", "--input-file", ["p.txt"], "prompts", "p.txt"),
    ("run", "--stop", ["x"], "stop_words", ["x"]),
    ("profile", "--input-file", ["p.txt"], "prompts", "p.txt"),
    ("profile", "--output-len", ["9"], "max_tokens", "9"),
    ("profile", "--per-kind", ["2"], "per_category", "2"),
    ("profile", "--no-ignore-eos", [], "ignore_eos", False),
    ("eval", "--input-file", ["p.txt"], "prompts", "p.txt"),
    ("eval", "--min-tau", ["2.5"], "min_acceptance_length", "2.5"),
    ("quantize", "--format", ["fp8"], "quant", "fp8"),
    ("export-triton", "--output", ["models"], "output_dir", "models"),
    ("export-triton", "--gpus", ["0,1"], "gpu_ids", "0,1"),
    ("serve", "--max-queue", ["9"], "max_waiting", "9"),
    ("serve", "--timeout", ["2.5"], "timeout_seconds", "2.5"),
    ("profile --estimate", "--kv-cache", ["fp8"], "kv_cache_dtype", "fp8"),
    ("profile --estimate", "--tau", ["3.5"], "acceptance_length", "3.5"),
]


def find_command(name: str) -> click.Command:
    if name == "profile --estimate":
        command: click.Command = import_module("trtllm_dflash.cli.estimate").estimate
        return command
    found = main.get_command(click.Context(main), name)  # type: ignore[attr-defined]
    assert found is not None
    return found


@pytest.mark.parametrize(("command", "alias", "value", "parameter", "parsed"), ALIASES)
def test_alias_is_parsed(
    command: str, alias: str, value: list[str], parameter: str, parsed: Any
) -> None:
    found = find_command(command)
    parser = found.make_parser(click.Context(found))
    values, _, _ = parser.parse_args([alias, *value])
    assert values[parameter] == parsed


@pytest.mark.parametrize(("command", "alias"), [row[:2] for row in ALIASES])
def test_alias_is_not_shown(command: str, alias: str) -> None:
    found = find_command(command)
    shown = found.get_help(click.Context(found, info_name=command)).split()
    assert alias not in [word.strip(",;") for word in shown]


def test_every_alias_is_tested() -> None:
    tested = {(command, alias) for command, alias, *_ in ALIASES}
    for name in (*COMMANDS, "profile --estimate"):
        for option in find_command(name).params:
            if isinstance(option, ConfigOption):
                assert {(name, alias) for alias in option.aliases} <= tested


def test_old_value_becomes_the_present_one() -> None:
    command = find_command("profile --estimate")
    arguments = ["--target", "Qwen3-8B", "--arch", "sm100", "--kv-cache", "bf16"]
    context = command.make_context("profile", arguments)
    assert context.params["kv_cache_dtype"] == "bfloat16"
    assert "bf16" not in command.get_help(context)


def test_one_spelling_for_one_thing() -> None:
    """Options that several commands share have the same name, whatever the command."""
    shared = {
        "output_dir": set(),
        "prompts": set(),
        "max_tokens": set(),
        "kv_cache_dtype": set(),
    }
    for name in (*COMMANDS, "profile --estimate"):
        for option in find_command(name).params:
            if option.name in shared:
                shared[option.name].add(tuple(option.opts))
    for field, spellings in shared.items():
        assert spellings == {(f"--{field.replace('_', '-')}",)}


@pytest.mark.parametrize(
    ("command", "option", "typed", "value"),
    [
        ("build", "kv_cache_dtype", "fp8_e4m3", "fp8"),
        ("build", "dtype", "BF16", "bfloat16"),
        ("build", "dtype", "FP32", "float32"),
        ("build", "quant", "NVFP4", "nvfp4"),
        ("quantize", "quant", "FP8", "fp8"),
        ("quantize", "kv_cache_dtype", "FP8", "fp8"),
        ("profile --estimate", "kv_cache_dtype", "bf16", "bfloat16"),
    ],
)
def test_values_as_others_write_them(command: str, option: str, typed: str, value: str) -> None:
    found = find_command(command)
    (parameter,) = (row for row in found.params if row.name == option)
    assert parameter.type.convert(typed, parameter, None) == value
    with pytest.raises(click.BadParameter):
        parameter.type.convert("fp17", parameter, None)
