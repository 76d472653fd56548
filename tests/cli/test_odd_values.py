"""Every option of every command with values of another type, huge, empty, nested, badly encoded.

A command may accept such a value or refuse it in its own words. It never ends with an exception
that nobody expected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import click
import pytest
from click.testing import CliRunner

from trtllm_dflash.cli import COMMANDS, main
from trtllm_dflash.errors import UsageError
from trtllm_dflash.runtime.engine import Engine
from trtllm_dflash.runtime.text.tokenizer import Tokenizer

ESTIMATE = "profile --estimate"
NUMBERS = (
    "",
    "x",
    "-1",
    "0",
    "1.5",
    "nan",
    "inf",
    "9" * 30,
    "-" + "9" * 30,
    "9" * 5000,
    "1e400",
)
TEXTS = (
    "",
    " ",
    "\udcff",
    "日本",
    "x" * 70_000,
    "[" * 50_000,
    "{}",
    "null",
    "1,,2",
    "../..",
    "%s",
)
# Files by name: what is in them.
FILES = {
    "empty": b"",
    "nested": b"[" * 100_000,
    "nested.jsonl": b'{"prompt":' + b"[" * 100_000 + b"]" * 100_000 + b"}\n",
    "binary": bytes(range(256)) * 4,
    "number": b"1" * 5000,
    "object": b'{"1": {"2": []}, "a": null, "prompt": {"x": 1}, "schema": 1}',
    "list": b'[1, "x", null, [], {}, 1e999]',
    "text": b"hello\n",
    "utf16": "hello".encode("utf-16"),
    "rows.jsonl": b'{"prompt": null}\n{"prompt": [1.5]}\n{"messages": [{"role": 1}]}\n',
}
STOP = "this is as far as the test goes"
SKIPPED = {"help", "version", "verbose", "estimate", "validate_estimate"}


class Commands:
    """Base arguments of each command, with which it works and is cheap."""

    def __init__(self, engines: Callable[..., Path], target: Path, folder: Path) -> None:
        engine = str(engines("dflash"))
        out = str(folder / "out")
        prompts = str(folder / "text")
        pair = ["--target", "gpt-oss-20b"]
        self.arguments = {
            "list": [],
            "doctor": [],
            "build": [
                "--target",
                str(target),
                "--no-drafter",
                "--dry-run",
                "--output-dir",
                out,
            ],
            "quantize": ["--target", str(target), "--quant", "fp8", "--output-dir", out],
            "run": [engine, "hi", "--max-tokens", "1", "--num-threads", "1"],
            "profile": [engine, "--prompts", prompts, "--num-threads", "1"],
            "eval": [engine, "--prompts", prompts, "--num-threads", "1"],
            "serve": [engine, "--port", "0", "--api-key", "k"],
            "inspect": [engine],
            "export-triton": [engine, "--output-dir", out, "--overwrite"],
            "export-trtllm": [*pair, "--gpus", "1", "--output-dir", out, "--overwrite"],
            ESTIMATE: [*pair, "--arch", "sm100"],
        }

    def command(self, name: str) -> click.Command:
        if name == ESTIMATE:
            found: click.Command = import_module("trtllm_dflash.cli.estimate").estimate
            return found
        command = main.get_command(click.Context(main), name)  # type: ignore[attr-defined]
        assert command is not None
        return command


@pytest.fixture
def commands(
    engines: Callable[..., Path],
    make_target: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Commands:
    """Make the files, stay in a folder of our own, and stop before dear work."""

    def stop(*_: object, **__: object) -> NoReturn:
        raise UsageError(STOP)

    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("trtllm_dflash.profile.profiler.plain_engine", stop)
    monkeypatch.setattr("trtllm_dflash.evaluate.evaluator.score", stop)
    monkeypatch.setattr("trtllm_dflash.quantize.pipeline._quantize_into", stop)
    monkeypatch.setattr("trtllm_dflash.runtime.engine.Scheduler", stop)
    monkeypatch.setattr("trtllm_dflash.http_server.run_server.warm_up", stop)
    monkeypatch.setattr(Engine, "load", remembering(Engine.load))
    monkeypatch.setattr(Tokenizer, "of_engine", remembering(Tokenizer.of_engine))
    return Commands(engines, make_target("llama", tokenizer=True), tmp_path)


def remembering(make: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that makes one thing for each first argument, which saves minutes."""
    made: dict[str, Any] = {}

    def get(path: Any, *rest: Any, **options: Any) -> Any:
        if str(path) not in made:
            made[str(path)] = make(path, *rest, **options)
        return made[str(path)]

    return get


def odd_values(parameter: click.Parameter) -> Iterator[str]:
    """Yield values that a parameter does not expect."""
    if parameter.type in (click.INT, click.FLOAT):
        yield from NUMBERS
    elif isinstance(parameter.type, click.Path):
        yield from (
            "",
            "nowhere/x",
            "folder",
            "/dev/null",
            "x" * 5000,
            "\udcff",
            "a\0b",
            *FILES,
        )
    else:
        yield from TEXTS


def odd_calls(command: click.Command) -> Iterator[tuple[str, list[str]]]:
    """Yield a parameter and arguments for it, for each of its odd values."""
    for parameter in command.params:
        if parameter.name in SKIPPED or getattr(parameter, "is_flag", False):
            continue
        if isinstance(parameter, click.Option):
            for value in odd_values(parameter):
                yield parameter.opts[0], [parameter.opts[0], value]


def check(arguments: list[str], what: str) -> None:
    result = CliRunner().invoke(main, arguments, input="hi")
    told = f"{what}: {arguments[-1][:60]!r}: {result.exit_code}, {result.output[-400:]}"
    assert result.exit_code in (0, 1, 2), told
    assert "should not happen" not in result.output, told
    assert result.exception is None or isinstance(result.exception, SystemExit), told
    assert len(result.stderr) < 20000, told


@pytest.mark.slow
@pytest.mark.parametrize("name", [*COMMANDS, ESTIMATE])
def test_odd_option_ends_in_words(name: str, commands: Commands) -> None:
    words = name.split()
    for option, arguments in odd_calls(commands.command(name)):
        check([*words, *commands.arguments[name], *arguments], f"{name} {option}")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["run", "profile", "eval", "inspect", "export-triton", "serve"]
)
def test_odd_engine_ends_in_words(name: str, commands: Commands) -> None:
    for value in ("", "nowhere/x", "folder", "/dev/null", "x" * 5000, "\udcff", *FILES):
        rest = commands.arguments[name][1:]
        check([name, value, *rest], f"{name} ENGINE")


def test_odd_numbers_are_refused_in_words(commands: Commands) -> None:
    """A sample of the slow tests above."""
    for option in ("--max-tokens", "--num-threads", "--draft-len", "--top-k", "--seed", "--n"):
        for value in ("x", "9" * 5000):
            check(["run", *commands.arguments["run"], option, value], option)
