"""The command itself: fast help, one line for each error, exit codes."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Callable

import click
import pytest
from click.testing import CliRunner, Result

from tests.patience import seconds_of_children
from trtllm_dflash import __version__
from trtllm_dflash.cli import COMMANDS, build, doctor, main
from trtllm_dflash.errors import BuildError, UsageError

HEAVY = (
    "torch",
    "modelopt",
    "transformers",
    "onnxruntime",
    "onnx",
    "onnx_ir",
    "tensorrt_rtx",
    "rich",
)
Invoke = Callable[..., Result]


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """`failing(error, *arguments)` runs a doctor that raises `error`."""

    def invoke(error: BaseException, *arguments: str) -> Result:
        def body(**_: object) -> None:
            raise error

        monkeypatch.setattr(doctor.doctor, "callback", body)
        return CliRunner().invoke(main, arguments or ("doctor",))

    return invoke


def test_help_is_fast_and_imports_nothing_heavy() -> None:
    script = f"""
import sys
from trtllm_dflash.cli import main
try:
    main(sys.argv[1:])
finally:
    print("loaded", sorted(set({HEAVY!r}) & sys.modules.keys()))
"""
    for arguments in (
        ["--help"],
        *([command, "--help"] for command in COMMANDS),
    ):
        begun = seconds_of_children()
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments],
            capture_output=True,
            text=True,
            check=True,
        )
        assert seconds_of_children() - begun < 1.5  # 0.2 on an idle machine
        assert done.stdout.endswith("loaded []\n")
        assert "Usage: " in done.stdout


def test_help_lists_every_command() -> None:
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    for name in COMMANDS:
        assert f"\n  {name} " in result.output


def test_help_has_a_short_name() -> None:
    """In a new process: click keeps the help option that another test's command first had."""
    command = [sys.executable, "-m", "trtllm_dflash", "run", "-h"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "Usage: " in shown
    assert "--help" in shown


def test_help_shows_whole_summaries() -> None:
    shown = CliRunner().invoke(main, ["--help"]).output
    assert "..." not in shown.split("Commands:")[1]


def test_version_is_the_packages() -> None:
    assert CliRunner().invoke(main, ["--version"]).output == f"dflash-trt {__version__}\n"


def test_python_m_is_the_same_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "trtllm_dflash", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"dflash-trt {__version__}\n"


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("buld", "build"),
        ("profle", "profile"),
        ("export-trton", "export-triton"),
        ("runn", "run"),
        ("estimate", "profile --estimate?"),
        ("server", "serve?"),
    ],
)
def test_unknown_command_names_the_nearest(typed: str, meant: str) -> None:
    result = CliRunner().invoke(main, [typed, "--help"])
    assert result.exit_code == 2
    assert f"No such command '{typed}'. Did you mean {meant}" in result.stderr


def test_full_disk_is_told_in_words(failing: Invoke) -> None:
    result = failing(OSError(errno.ENOSPC, "No space left on device", "/some/file"))
    assert result.exit_code == 1
    words = "error: /some/file: cannot be written (No space left on device). Free space there"
    assert result.stderr.startswith(words)


def test_error_of_the_system_is_told_in_words(failing: Invoke) -> None:
    result = failing(OSError(errno.ENAMETOOLONG, "File name too long", "x" * 5000))
    assert result.exit_code == 1
    assert result.stderr == f"error: {'x' * 200}…: File name too long.\n"
    assert "too little memory" in failing(MemoryError()).stderr


def test_unknown_command_is_a_usage_error() -> None:
    result = CliRunner().invoke(main, ["qqqq"])
    assert result.exit_code == 2
    assert "No such command 'qqqq'" in result.stderr


@pytest.mark.parametrize(
    ("error", "code"), [(BuildError("it broke"), 1), (UsageError("it broke"), 2)]
)
def test_error_is_its_text_and_exit_code(failing: Invoke, error: Exception, code: int) -> None:
    result = failing(error)
    assert result.exit_code == code
    assert result.stderr == "error: it broke\n"
    assert result.stdout == ""


def test_unexpected_error_is_one_line_and_a_hint(failing: Invoke) -> None:
    result = failing(ZeroDivisionError("division by zero"))
    assert result.exit_code == 1
    assert (
        result.stderr
        == "error: ZeroDivisionError: division by zero\nThis should not happen; run with --verbose"
        " for the traceback.\n"
    )


@pytest.mark.parametrize("arguments", [("--verbose", "doctor"), ("doctor", "--verbose")])
def test_verbose_adds_the_traceback(failing: Invoke, arguments: tuple[str, ...]) -> None:
    result = failing(BuildError("it broke"), *arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith("Traceback (most recent call last):")
    assert result.stderr.endswith("error: it broke\n")


def test_interrupt_is_one_line(failing: Invoke) -> None:
    result = failing(KeyboardInterrupt())
    assert result.exit_code == 130
    assert result.stderr == "interrupted\n"


def test_broken_pipe_is_not_unexpected(failing: Invoke) -> None:
    result = failing(OSError(errno.EPIPE, "Broken pipe"))
    assert result.exit_code == 1
    assert "should not happen" not in result.stderr


def test_click_errors_stay_clicks(failing: Invoke) -> None:
    result = failing(click.BadParameter("not that"))
    assert result.exit_code == 2
    assert "not that" in result.stderr


def test_every_option_of_build_has_help() -> None:
    for parameter in build.build.params:
        assert isinstance(parameter, click.Option)
        assert parameter.help
