"""Folders for unfinished work, which the next command removes if their owner has died.

A work folder holds a lock as long as its owner lives. Nothing without such a lock is removed.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from trtllm_dflash.atomic.file_lock import existing_lock, file_lock
from trtllm_dflash.errors import BuildError
from trtllm_dflash.log import human_bytes

# Its presence says that a command of ours made the folder, its lock that the command still runs.
LOCK_FILE = ".dflash-trt.lock"
_LOG = logging.getLogger(__name__)


@contextmanager
def work_folder(prefix: str, parent: Path | None = None) -> Iterator[Path]:
    """Yield a new folder in `parent` (default: TMPDIR) for the block; it is removed at the end.

    Those of the same prefix whose owners have died are removed first. A folder without its lock
    file, which the block may remove, is kept.

    Raises:
        OSError: if no folder can be made there.
        BuildError: if none can be made in TMPDIR.
    """
    with ExitStack() as stack:
        folder = (
            _make_temporary(prefix, stack) if parent is None else _make(prefix, parent, stack)
        )
        try:
            yield folder
        finally:
            if (folder / LOCK_FILE).exists():
                _remove(folder)


def _make_temporary(prefix: str, stack: ExitStack) -> Path:
    try:
        return _make(prefix, Path(tempfile.gettempdir()), stack)
    except OSError as error:
        place = os.environ.get("TMPDIR", "/tmp")
        raise BuildError(
            f"{place}: no temporary folder can be made there ({error.strerror}); set TMPDIR to a"
            " folder that can be written"
        ) from error


def _make(prefix: str, parent: Path, stack: ExitStack) -> Path:
    """Return a new folder whose lock is held until `stack` ends."""
    remove_leftovers(prefix, parent)
    while True:
        folder = parent / f"{prefix}{secrets.token_hex(8)}"
        stack.callback(_remove_empty, folder)  # first: SIGTERM may come between any two lines
        folder.mkdir(mode=0o700)
        try:
            stack.enter_context(file_lock(folder / LOCK_FILE))
        except FileNotFoundError:
            continue  # taken for a leftover before it had its lock
        except BaseException:
            _remove(folder)
            raise
        return folder


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):  # it is gone already, or what is in it is to be kept
        folder.rmdir()


def abandon(path: Path) -> None:
    """Remove the work folder that `path` is in, for a process whose parent owned it and died."""
    for folder in path.parents:
        if (folder / LOCK_FILE).is_file():
            _remove(folder)
            return


def keep_only(folder: Path, name: str) -> None:
    """Remove everything in a work folder but the file `name`, and let that outlive its owner."""
    for path in folder.iterdir():
        if path.name != name:
            _remove(path)


def remove_leftovers(prefix: str, parent: Path) -> list[Path]:
    """Remove the work folders of dead owners in `parent`, and say so in one line for each.

    Returns what looks like one and has no lock, or cannot be removed.
    """
    doubtful = []
    for folder in _folders(prefix, parent):
        size = human_bytes(_size(folder))
        with existing_lock(folder / LOCK_FILE) as state:
            if state == "held":
                continue
            with suppress(OSError):
                folder.rmdir()  # empty: its owner died before it had made the lock
                continue
            if state == "free" and (folder / LOCK_FILE).is_file():
                _remove(folder)
        if folder.exists():
            doubtful.append(folder)
        else:
            _LOG.info("removed %s (%s), which a killed command had left", folder, size)
    return doubtful


def _folders(prefix: str, parent: Path) -> list[Path]:
    """Return this user's folders of that prefix."""
    found = []
    with suppress(OSError), os.scandir(parent) as entries:
        for entry in entries:
            if entry.name.startswith(prefix) and entry.is_dir(follow_symlinks=False):
                status = entry.stat(follow_symlinks=False)
                if status.st_uid == os.geteuid():
                    found.append(Path(entry.path))
    return sorted(found)


def _remove(path: Path) -> None:
    """Remove a file or a tree as far as possible; cleaning up hides no other error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _size(folder: Path) -> int:
    """Return the bytes of all files in a folder, as far as they can be read."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            total += path.lstat().st_size
    return total
