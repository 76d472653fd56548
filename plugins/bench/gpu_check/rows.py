"""What a part reports: rows, written one by one, so that those before a crash are kept."""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

OK, FAILED, SKIPPED = "ok", "failed", "skipped"
_MAX_REASON = 300  # characters


class SkippedError(Exception):
    """A case or a part cannot be tried here; the message says why."""


class Check:
    """A part's report, the folder that parts share, and whether sizes are small."""

    def __init__(self, rows: Path, folder: Path, *, small: bool) -> None:
        """`rows`: the file that rows are appended to, one JSON object a line."""
        self.folder = folder
        self.small = small
        self._rows = rows

    def add(self, case: str, result: str, reason: str = "", **figures: Any) -> None:
        """Append a row."""
        row = {"case": case, "result": result, "reason": reason[:_MAX_REASON], **figures}
        with self._rows.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    @contextmanager
    def case(self, name: str) -> Iterator[dict[str, Any]]:
        """Append a row for what the block does; the block adds its figures to what it is given.

        An error in the block is the row's reason, and the next case goes on.
        """
        figures: dict[str, Any] = {}
        try:
            yield figures
        except SkippedError as reason:
            self.add(name, SKIPPED, str(reason), **figures)
        except Exception as error:  # noqa: BLE001 - a case fails alone, whatever it was
            traceback.print_exc()
            self.add(name, FAILED, described(error), **figures)
        else:
            self.add(name, OK, **figures)


def described(error: BaseException) -> str:
    """Return an error in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file; a last line that was cut off by a crash is left out."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return found
