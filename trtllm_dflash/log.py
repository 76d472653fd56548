"""Log lines of long steps, a progress bar on a terminal, and tables of text."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

ROOT = "trtllm_dflash"
logging.getLogger(ROOT).addHandler(logging.NullHandler())

Rows = Sequence[tuple[str, str]]
# Called as `progress(phase, done, total)`. A phase counts in bytes, files or builder steps.
Progress = Callable[[str, int, int], None]


def configure(*, verbose: bool) -> None:
    """Send the package's log lines to stderr: from INFO on, or all of them when `verbose`."""
    logger = logging.getLogger(ROOT)
    for handler in logger.handlers[1:]:
        logger.removeHandler(handler)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)


def printable(text: str) -> str:
    """Return a text from elsewhere with the escapes of what moves a terminal or cannot be sent."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def table(rows: Iterable[Sequence[str]], indent: str = "  ", align: str = "") -> str:
    """Return rows of equally many cells as lines with aligned columns.

    `align` has "<" or ">" for each column from the first on; the others are aligned to the left.
    """
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    signs = f"{align:<<{len(widths)}}"
    lines = []
    for row in rows:
        cells = [
            f"{cell:{sign}{width}}"
            for cell, sign, width in zip(row, signs, widths, strict=True)
        ]
        lines.append(indent + "  ".join(cells).rstrip())
    return "\n".join(lines)


def markdown_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines)


def started(logger: logging.Logger, title: str, rows: Rows) -> None:
    """Log that the long step `title` starts, and its resolved configuration."""
    logger.info("%s with:\n%s", title, table(rows))


def finished(logger: logging.Logger, title: str, rows: Rows) -> None:
    """Log that the long step `title` has ended, with what it cost."""
    logger.info("%s: %s", title, ", ".join(f"{name} {value}" for name, value in rows))


def counted(count: int, noun: str) -> str:
    """Return a count and its noun: 1 token, 2 tokens."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def human_bytes(count: int) -> str:
    """Return a byte count in decimal units, as in 561.3 MB."""
    if count < 1000:
        return f"{count} B"
    size = float(count)
    for unit in ("kB", "MB", "GB", "TB"):
        size /= 1000
        if size < 999.95 or unit == "TB":
            break
    return f"{size:.1f} {unit}"


@contextmanager
def progress_bar(*, enabled: bool | None = None) -> Iterator[Progress]:
    """Yield a `Progress` that draws one bar for each phase on stderr.

    It draws nothing unless `enabled`; None stands for whether stderr is a terminal.
    """
    if not (sys.stderr.isatty() if enabled is None else enabled):
        yield ignore_progress
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        TaskID,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
    )
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    tasks: dict[str, TaskID] = {}
    with Bars(
        *columns, console=Console(stderr=True, force_terminal=True), transient=True
    ) as bars:

        def show(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = bars.add_task(phase)
            bars.update(tasks[phase], completed=done, total=total)

        yield show


def ignore_progress(phase: str, done: int, total: int) -> None:
    """Show nothing: a `Progress` for callers that give none."""
