"""Directories that appear whole or not at all, and checks of where they are to be.

A directory is written beside its final place, then renamed into it.
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trtllm_dflash.engine_dir import manifest
from trtllm_dflash.errors import BuildError, EngineError, UsageError
from trtllm_dflash.log import human_bytes


def check_output_dir(
    directory: Path, *, overwrite: bool = False, what: str | None = None
) -> bool:
    """Return whether an output directory is new or empty.

    If it holds something, `overwrite` was given, and the caller must look what it holds.

    `what` is what the command's --overwrite replaces, None for a command without that option.

    Raises:
        UsageError: for a file, for a place where no directory can be made, or for a directory with
            something in it and no `overwrite`.
    """
    if not os.path.lexists(directory):
        check_creatable("--output-dir", directory)
        return True
    if not directory.is_dir():
        raise UsageError(f"--output-dir {directory} is a file; give the name of a directory")
    if not any(directory.iterdir()):
        check_creatable("--output-dir", directory)
        return True
    if not overwrite:
        instead = f", or --overwrite to replace {what}" if what else ""
        raise UsageError(f"--output-dir {directory} is not empty; give another{instead}")
    return False


def check_creatable(option: str, directory: Path) -> None:
    """Check that `directory` could be made: the nearest existing path above it may be written.

    Nothing is written. A few file systems refuse writes in spite of their modes. For those
    `atomic_directory` raises.

    Raises:
        UsageError: naming the path that is in the way.
    """
    above = _existing(directory.absolute().parent)
    if not above.is_dir():
        raise UsageError(
            f"{option} {directory}: {above} is a file, and nothing can be in it; give another"
        )
    if not os.access(above, os.W_OK | os.X_OK):
        raise UsageError(f"{option} {directory}: {above} may not be written; give another")


def _existing(path: Path) -> Path:
    """Return the path itself, or the nearest one above it that exists."""
    return next(candidate for candidate in (path, *path.parents) if os.path.lexists(candidate))


def check_output(directory: Path, *, overwrite: bool) -> None:
    """Check that an engine can be written to `directory`.

    With `overwrite` it may hold an engine, and no file that a build has not written.

    Raises:
        UsageError: saying what is in the way.
    """
    if check_output_dir(directory, overwrite=overwrite, what="an engine"):
        return
    try:
        unlisted = manifest.unlisted_files(directory)
    except EngineError as error:
        raise UsageError(
            f"--overwrite replaces an engine, and nothing else is ever deleted: {error}"
        ) from error
    if unlisted:
        raise UsageError(
            f"--overwrite replaces an engine, and {directory} also holds files that no build wrote:"
            f" {', '.join(unlisted)}. Move them away"
        )


def check_space(directory: Path, needed: int, *, what: str = "the engine") -> None:
    """Check that the disk of `directory` has `needed` bytes free.

    Raises:
        BuildError: naming both sizes.
    """
    existing = _existing(directory.absolute())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise BuildError(
            f"{what} needs about {human_bytes(needed)}, and the disk of {existing} has"
            f" {human_bytes(free)} free; give another --output-dir"
        )


@contextmanager
def atomic_directory(directory: Path) -> Iterator[Path]:
    """Yield an empty directory that becomes `directory` if the block succeeds, else is deleted.

    An engine directory already there is replaced at the same moment. SIGTERM counts as a failure of
    the block.

    Raises:
        UsageError: if no directory can be made there.
    """
    created = [parent for parent in directory.parents if not parent.exists()]
    staging = directory.parent / f".{directory.name}.building-{os.getpid()}"
    try:
        staging.mkdir(parents=True)
    except OSError as error:
        raise UsageError(
            f"{directory}: no directory can be made there ({error.strerror}); give another"
        ) from error
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
    """Turn SIGTERM into SystemExit, so that cleaning up runs."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python handles signals in the main thread only
        return

    def leave(number: int, frame: Any) -> None:  # noqa: ARG001 - a signal handler has both
        raise SystemExit(128 + number)

    previous = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
