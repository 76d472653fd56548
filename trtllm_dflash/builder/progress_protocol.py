"""The events that a builder process sends to its parent: JSON lines on its original stdout.

Everything else that it prints goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from typing import Any, TextIO

from trtllm_dflash.errors import DFlashError


class EventStream:
    """Writes events. It takes stdout for itself, so that prints of native code go to the log."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._percent: tuple[str, int] | None = None

    @classmethod
    def over_stdout(cls) -> EventStream:
        """Move the process's stdout to stderr and keep the original for events."""
        sys.stdout.flush()
        stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        return cls(stream)

    def progress(self, phase: str, done: int, total: int) -> None:
        """Send progress, as a `log.Progress`; at most one line for each percent."""
        percent = (phase, 100 * done // max(total, 1))
        if percent != self._percent:
            self._percent = percent
            self._send({"phase": phase, "done": done, "total": total})

    def result(self, values: dict[str, Any]) -> None:
        """Report that the work is done."""
        self._send({"result": values})

    def error(self, error: Exception, error_class: type[DFlashError]) -> None:
        """Report a known error as one of `error_class`, a class in errors.py."""
        self._send({"error": error_class.__name__, "text": str(error)})

    def _send(self, event: dict[str, Any]) -> None:
        with suppress(BrokenPipeError):  # the parent is gone, and the worker will stop itself
            self._stream.write(json.dumps(event) + "\n")
            self._stream.flush()
