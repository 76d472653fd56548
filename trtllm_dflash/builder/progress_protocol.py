"""What a builder process tells its parent: JSON lines on its original stdout; everything else goes
to stderr.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from typing import Any, TextIO


class EventStream:
    """Writes events; takes stdout for itself, so that whatever native code prints there goes to the
    log.
    """

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
        """A `log.Progress`; at most one line for each percent."""
        percent = (phase, 100 * done // max(total, 1))
        if percent != self._percent:
            self._percent = percent
            self._send({"phase": phase, "done": done, "total": total})

    def result(self, values: dict[str, Any]) -> None:
        """The work is done."""
        self._send({"result": values})

    def error(self, error: Exception, kind: str) -> None:
        """The work cannot be done, for a reason that is understood; `kind` is the name of a class
        in errors.
        """
        self._send({"error": kind, "text": str(error)})

    def _send(self, event: dict[str, Any]) -> None:
        with suppress(
            BrokenPipeError
        ):  # nobody listens any more: the worker notices by itself, and stops
            self._stream.write(json.dumps(event) + "\n")
            self._stream.flush()
