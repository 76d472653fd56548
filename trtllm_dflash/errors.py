"""The one family of errors: every failure that a user can cause or meet is a DFlashError.

Its text says what, where, expected and got, and what to do.
"""

from __future__ import annotations


class DFlashError(Exception):
    """Base of all errors of this package; the command line prints its text and exits with
    `exit_code`.
    """

    exit_code = 1


class UsageError(DFlashError):
    """The request itself is wrong: an option, an argument, a prompt that cannot fit."""

    exit_code = 2


class ConfigError(DFlashError):
    """A configuration file is missing a key, has a wrong value, or asks for something
    unsupported.
    """


class CheckpointError(DFlashError):
    """A checkpoint's files are damaged, incomplete, hostile, or do not match their
    configuration.
    """


class GraphError(DFlashError):
    """A step graph could not be constructed."""


class BuildError(DFlashError):
    """An engine could not be built, here or for this GPU."""


class QuantizeError(DFlashError):
    """A model could not be quantized: something needed is not installed, or its numbers allow no
    scale.
    """


class EngineError(DFlashError):
    """An engine directory cannot be used, or a running engine is in a state that forbids the
    call.
    """


class ClosedError(EngineError):
    """The engine is being closed: nothing is wrong with the request, and another engine may be
    asked.
    """


class BusyError(DFlashError):
    """Nothing is wrong with the request, but there is no room for it now: it may be sent again."""


def install_command(extra: str) -> str:
    """Return the command that installs an optional part of this package, and where to run it."""
    return f"pip install '.[{extra}]' in the dflash-trt repository"
