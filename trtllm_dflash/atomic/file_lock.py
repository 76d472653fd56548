"""Locks that end with the process that holds them, whatever ends it."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

# Of file systems that have no locks.
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
# Who only asks for a lock's state holds it for a moment.
_PATIENCE = 0.2  # seconds
State = Literal["free", "held", "unknown"]


class LockedError(Exception):
    """Another process or thread holds the lock."""


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold the lock `path` in the block: a file, made if it is not there, and removed at the end.

    Where the file system has no locks, the block runs without one.

    Raises:
        LockedError: if somebody else holds it.
        OSError: if the file cannot be made.
    """
    descriptor = _acquire(path)
    try:
        yield
    finally:
        with suppress(OSError):  # somebody has removed it, or the disk is gone
            path.unlink()
        os.close(descriptor)


def _acquire(path: Path) -> int:
    """Return a descriptor of the file, locked."""
    until = time.monotonic() + _PATIENCE
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        state = _try_lock(descriptor)
        # Its holder may have removed it between the two calls above. Then it is no lock any more.
        if state == "unknown" or (state == "free" and _is_still(path, descriptor)):
            return descriptor
        os.close(descriptor)
        if state == "held" and time.monotonic() > until:
            raise LockedError
        time.sleep(0.01)


@contextmanager
def existing_lock(path: Path) -> Iterator[State]:
    """Yield the state of the lock `path`, and hold it in the block if it was free.

    Nothing is written. A lock that is not there is free, and cannot be held.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        yield "free" if isinstance(error, FileNotFoundError) else "unknown"
        return
    try:
        yield _try_lock(descriptor)
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> State:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return "held"
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return "unknown"
        raise
    return "free"


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
