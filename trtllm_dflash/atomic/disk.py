"""The disk that a path is, or will be, on."""

from __future__ import annotations

import shutil
from pathlib import Path


def free_bytes(path: Path) -> int:
    """Return the free bytes of the disk that a path is, or will be, on."""
    return shutil.disk_usage(existing_above(path)).free


def same_disk(path: Path, other: Path) -> bool:
    """Return whether two paths are, or will be, on one disk."""
    return existing_above(path).stat().st_dev == existing_above(other).stat().st_dev


def existing_above(path: Path) -> Path:
    """Return the path itself, or the nearest one above it that exists."""
    whole = path.absolute()
    return next(each for each in (whole, *whole.parents) if each.exists())
