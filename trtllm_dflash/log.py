"""What a long step says: its resolved configuration before, seconds and bytes after, a progress bar
on a terminal.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

ROOT = "trtllm_dflash"
logging.getLogger(ROOT).addHandler(logging.NullHandler())

Rows = Sequence[tuple[str, str]]
Progress = Callable[[str, int, int], None]
"""Called as `progress(phase, done, total)`; `total` is in whatever the phase counts (bytes, files, builder steps)."""


def configure(*, verbose: bool) -> None:
    """Send the package's log lines to stderr: warnings and the long steps' own lines, everything
    when `verbose`.
    """
    logger = logging.getLogger(ROOT)
    for handler in logger.handlers[1:]:
        logger.removeHandler(handler)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)


def table(rows: Rows, indent: str = "  ") -> str:
    """Rows of (name, value) as aligned lines."""
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"{indent}{name:<{width}}  {value}" for name, value in rows)


def started(logger: logging.Logger, title: str, rows: Rows) -> None:
    """Log that the long step `title` starts, with its resolved configuration."""
    logger.info("%s with:\n%s", title, table(rows))


def finished(logger: logging.Logger, title: str, rows: Rows) -> None:
    """Log that the long step `title` has ended, with what it cost."""
    logger.info("%s: %s", title, ", ".join(f"{name} {value}" for name, value in rows))


def human_bytes(count: int) -> str:
    """A byte count for people, in decimal units: 561.3 MB."""
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
    """Yield a `Progress` that draws one bar a phase on stderr; silent unless `enabled` (default:
    stderr is a TTY).
    """
    if not (sys.stderr.isatty() if enabled is None else enabled):
        yield ignore_progress
        return
    from rich.console import Console
    from rich.progress import BarColumn, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    tasks: dict[str, TaskID] = {}
    with Bars(*columns, console=Console(stderr=True, force_terminal=True), transient=True) as bars:

        def show(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = bars.add_task(phase)
            bars.update(tasks[phase], completed=done, total=total)

        yield show


def ignore_progress(phase: str, done: int, total: int) -> None:
    """The `Progress` that shows nothing."""
