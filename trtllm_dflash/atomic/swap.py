"""Moves a finished directory to its place in one step, and deletes only what it replaces."""

from __future__ import annotations

import ctypes
import errno
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # linux/fs.h
# What renameat2 says where the kernel or the file system has no exchange.
_NO_EXCHANGE = {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP}


@dataclass(frozen=True)
class Written:
    """What a command of ours wrote into a directory.

    `identity` differs from one such directory to another: the hash of its record. `files` are
    names relative to it, of files that may be deleted with it.
    """

    identity: str
    files: frozenset[str]


def files_below(directory: Path) -> set[str]:
    """Return the names of all files and links in a directory and below, relative to it."""
    found = set()
    for folder, folders, files in os.walk(directory):
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        for name in (*files, *links):
            found.add(os.path.relpath(Path(folder) / name, directory))
    return found


def exchange(one: Path, other: Path) -> bool:
    """Exchange two directories in one step; False where that cannot be done.

    Raises:
        OSError: if one of them is not there or may not be moved.
    """
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    names = os.fsencode(one), os.fsencode(other)
    if not renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE):
        return True
    number = ctypes.get_errno()
    if number in _NO_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(other))


def swap(new: Path, directory: Path, old: Path) -> None:
    """Put `new` in the place of `directory`, which becomes `old`: a name that is free.

    In one step where the file system can, else in two.
    """
    if exchange(new, directory):
        new.rename(old)
        return
    directory.rename(old)
    try:
        new.rename(directory)
    except BaseException:
        old.rename(directory)
        raise


def delete_files(directory: Path, files: frozenset[str]) -> None:
    """Delete these files of a directory, and the folders that are empty then, itself included.

    A record may list anything, so only what is really in the directory is deleted.
    """
    for name in files_below(directory) & files:
        with suppress(OSError):
            (directory / name).unlink()
    for folder, _, _ in os.walk(directory, topdown=False):
        with suppress(OSError):
            Path(folder).rmdir()
