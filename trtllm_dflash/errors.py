"""The errors of this package. A failure that a user can cause or meet is a DFlashError.

The text of an error says what is wrong, where, what was expected and found, and what to do.
"""

from __future__ import annotations


class DFlashError(Exception):
    """Base of all errors of this package.

    The command line prints its text and exits with `exit_code`.
    """

    exit_code = 1


class UsageError(DFlashError):
    """The request itself is wrong: an option, an argument, a prompt that cannot fit."""

    exit_code = 2


class ConfigError(DFlashError):
    """A configuration file lacks a key, has a wrong value, or asks for something unsupported."""


class CheckpointError(DFlashError):
    """A checkpoint is damaged, incomplete or hostile, or does not match its configuration."""


class GraphError(DFlashError):
    """A step graph could not be constructed."""


class BuildError(DFlashError):
    """An engine could not be built, here or for this GPU."""


class QuantizeError(DFlashError):
    """A model could not be quantized: a package is missing, or its weights allow no scale."""


class EngineError(DFlashError):
    """An engine directory cannot be used, or a running engine cannot serve a call in its state."""


class ClosedError(EngineError):
    """The engine is closing. The request is right, and another engine can serve it."""


class BusyError(DFlashError):
    """The engine has no room for the request now. The request is right and can be sent again.

    `retry_after` says in how many seconds there may be room, if that is known.
    """

    def __init__(self, problem: str, retry_after: int | None = None) -> None:
        when = "later" if retry_after is None else f"in {retry_after} s"
        super().__init__(f"{problem} Try again {when}.")
        self.retry_after = retry_after


class DeadlineError(DFlashError):
    """The time that the request has given itself is over, and its answer is not whole."""


class OutputError(DFlashError):
    """A result could not be written, as on a full disk."""


def as_dflash_error(what: str, failure: BaseException) -> DFlashError:
    """Return an error of foreign code as one of ours: "<what>: <its class>: <its text>"."""
    if isinstance(failure, DFlashError):
        return failure
    return EngineError(f"{what}: {type(failure).__name__}: {failure}")


def install_command(extra: str) -> str:
    """Return the command that installs an optional part of this package, and where to run it."""
    return f"pip install '.[{extra}]' in the dflash-trt repository"
