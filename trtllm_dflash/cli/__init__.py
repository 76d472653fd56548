"""The dflash-trt command: subcommands are imported when they are used.

An error is one line on stderr. Exit codes are 0, 1 (it failed) and 2 (the request is wrong).
"""

from __future__ import annotations

import errno
import io
import os
import sys
import traceback
from difflib import get_close_matches
from importlib import import_module
from typing import Any, TextIO

import click

from trtllm_dflash import __version__, log
from trtllm_dflash.errors import DFlashError
from trtllm_dflash.termination import termination_as_exit

# Command name -> module of this package; the function there has the command's name.
COMMANDS = {
    "list": "list_pairs",
    "quantize": "quantize",
    "build": "build",
    "run": "run",
    "serve": "serve",
    "profile": "profiling",
    "eval": "evaluate",
    "inspect": "inspect_engine",
    "export-triton": "export_triton",
    "export-trtllm": "export_trtllm",
    "doctor": "doctor",
}
# What other tools, and older habits, call a command.
_OTHER_NAMES = {
    "bench": "profile",
    "benchmark": "profile",
    "chat": "run",
    "convert": "build",
    "estimate": "profile --estimate",
    "evaluate": "eval",
    "export": "export-triton or export-trtllm",
    "generate": "run",
    "help": "--help",
    "info": "inspect",
    "models": "list",
    "server": "serve",
    "version": "--version",
}
_INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it
_MAX_SHOWN_PATH = 200  # characters
_MAX_SHOWN_TEXT = 8000  # characters: a table of all that differs still fits
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class CommandGroup(click.Group):
    """The subcommands, and the handling of their errors."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run the command line; output that the terminal cannot show is replaced."""
        for stream in (sys.stdout, sys.stderr):
            _replace_unencodable(stream)
        try:
            return super().main(*args, **extra)
        except OSError as error:  # of --help and --version: no subcommand has been invoked
            click.echo(f"error: {_describe_os_error(error)}", err=True)
            _drop_what_cannot_be_written()
            sys.exit(1)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the subcommands in the order in which they are used."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a subcommand, which takes --verbose as the group does."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"trtllm_dflash.cli.{COMMANDS[cmd_name]}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        if not any(option.name == "verbose" for option in command.params):
            command.params.append(_verbose_option())
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the subcommand; for an unknown one say which was meant."""
        near = get_close_matches(args[0], COMMANDS, n=2)
        meant = _OTHER_NAMES.get(args[0]) or " or ".join(near)
        if meant and args[0] not in COMMANDS and not ctx.resilient_parsing:
            ctx.fail(f"No such command '{args[0]}'. Did you mean {meant}?")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the subcommand; a traceback is shown with --verbose only."""
        try:
            with termination_as_exit():
                return super().invoke(ctx)
        except DFlashError as error:
            _fail(ctx, str(error), error.exit_code)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(_INTERRUPTED)
        except click.UsageError as error:
            if len(error.message) <= _MAX_SHOWN_TEXT:
                raise
            raise click.UsageError(_shortened(error.message), error.ctx) from error
        except (click.ClickException, click.Abort, click.exceptions.Exit):
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                raise  # click ends quietly when the reader of our output has gone
            _fail(ctx, _describe(error, verbose=_is_verbose(ctx)), 1)


def _describe(error: Exception, *, verbose: bool) -> str:
    """Return the text of an error that is no DFlashError."""
    if isinstance(error, OSError) and error.strerror:
        return _describe_os_error(error)
    if isinstance(error, MemoryError):
        return (
            "this machine has too little memory for it. Close other programs, or ask for less."
        )
    text = f"{type(error).__name__}: {error}"
    if not verbose:
        text += "\nThis should not happen; run with --verbose for the traceback."
    return text


def _describe_os_error(error: OSError) -> str:
    """Return the text of an error of the operating system that nothing else has told."""
    place = str(error.filename or "the output")
    if len(place) > _MAX_SHOWN_PATH:
        place = f"{place[:_MAX_SHOWN_PATH]}…"
    if error.errno in _NO_ROOM:
        advice = "Free space there, or write elsewhere."
        return f"{place}: cannot be written ({error.strerror}). {advice}"
    return f"{place}: {error.strerror}."


def _shortened(text: str) -> str:
    """Return a message without the middle of a value that fills pages."""
    if len(text) <= _MAX_SHOWN_TEXT:
        return text
    half = _MAX_SHOWN_TEXT // 2
    return f"{text[:half]} … {text[-half:]}"


def _replace_unencodable(stream: TextIO | None) -> None:
    """Make a stream write "?" for characters that its encoding lacks, instead of failing."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")


def _fail(ctx: click.Context, text: str, exit_code: int) -> None:
    if _is_verbose(ctx):
        traceback.print_exc()
    click.echo(f"error: {_shortened(text)}", err=True)
    _drop_what_cannot_be_written()
    ctx.exit(exit_code)


def _drop_what_cannot_be_written() -> None:
    """Forget buffered output of a full disk, which would end the process with another code."""
    try:
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _is_verbose(ctx: click.Context) -> bool:
    return bool(ctx.find_root().meta.get("verbose"))


def _set_verbose(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    root = ctx.find_root()
    root.meta["verbose"] = value or _is_verbose(ctx)
    log.configure(verbose=_is_verbose(ctx))


def _verbose_option() -> click.Option:
    return click.Option(
        ["--verbose"],
        is_flag=True,
        expose_value=False,
        callback=_set_verbose,
        help="show all log lines, and a traceback with an error",
    )


@click.command(
    cls=CommandGroup,
    params=[_verbose_option()],
    context_settings={"show_default": True, "help_option_names": ["--help", "-h"]},
)
@click.version_option(__version__, prog_name="dflash-trt", message="%(prog)s %(version)s")
def main() -> None:
    """Build and run one TensorRT engine that drafts, verifies and accepts on the device."""
