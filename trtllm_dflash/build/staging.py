"""A directory that appears whole or not at all: written beside its final place, then renamed into it."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trtllm_dflash.build import manifest
from trtllm_dflash.errors import BuildError, EngineError, UsageError
from trtllm_dflash.log import human_bytes


def is_free(directory: Path, *, overwrite: bool, what: str) -> bool:
    """Whether nothing is in the way of an output; where something is, `overwrite` has allowed to look what it is.

    Raises:
        UsageError: for a file, and for a directory with something in it and no `overwrite`, which replaces `what`.
    """
    if not directory.exists():
        return True
    if not directory.is_dir():
        raise UsageError(f"--output-dir {directory} is a file; give the name of a directory")
    if not any(directory.iterdir()):
        return True
    if not overwrite:
        raise UsageError(f"--output-dir {directory} is not empty; give another, or --overwrite to replace {what}")
    return False


def check_output(directory: Path, *, overwrite: bool) -> None:
    """Refuse an output that exists, unless `overwrite` and it is an engine directory with nothing else in it.

    Raises:
        UsageError: saying what is in the way.
    """
    if is_free(directory, overwrite=overwrite, what="an engine"):
        return
    try:
        strangers = manifest.unlisted_files(directory)
    except EngineError as error:
        raise UsageError(f"--overwrite replaces an engine, and nothing else is ever deleted: {error}") from error
    if strangers:
        raise UsageError(
            f"--overwrite replaces an engine, and {directory} also holds files that no build wrote: "
            f"{', '.join(strangers)}. Move them away"
        )


def check_space(directory: Path, needed: int, *, what: str = "the engine") -> None:
    """Raise BuildError, naming both numbers, if the disk of `directory` has less than `needed` bytes free."""
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise BuildError(
            f"{what} needs about {human_bytes(needed)}, and the disk of {existing} has {human_bytes(free)} free; "
            f"give another --output-dir"
        )


@contextmanager
def staged(directory: Path) -> Iterator[Path]:
    """Yield an empty directory that becomes `directory` if the block succeeds, and vanishes if it does not.

    An engine directory already there is replaced in the same moment. SIGTERM counts as a failure of the block.
    """
    created = [parent for parent in directory.parents if not parent.exists()]
    staging = directory.parent / f".{directory.name}.building-{os.getpid()}"
    staging.mkdir(parents=True)
    try:
        with _termination_as_exit():
            yield staging
            _replace(directory, staging)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        for parent in created:
            parent.rmdir()
        raise


def _replace(directory: Path, staging: Path) -> None:
    if not directory.exists():
        staging.rename(directory)
        return
    old = staging.with_name(f"{staging.name}-old")
    directory.rename(old)
    try:
        staging.rename(directory)
    except BaseException:
        old.rename(directory)
        raise
    shutil.rmtree(old)


@contextmanager
def _termination_as_exit() -> Iterator[None]:
    """Turn SIGTERM into SystemExit, so that what must be cleaned up is."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python handles signals in the main thread only
        return

    def leave(number: int, frame: Any) -> None:  # noqa: ARG001 - the shape of a signal handler
        raise SystemExit(128 + number)

    previous = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
