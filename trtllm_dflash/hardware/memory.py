"""The peak memory of this process, and returning freed memory to the system."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress
from pathlib import Path


def peak_memory() -> int:
    """Return the peak of resident bytes so far, pages of mapped weight files included."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not ru_maxrss, which on Linux starts from the parent's size.
        peak = next(
            line
            for line in status.read_text(encoding="utf-8").splitlines()
            if line.startswith("VmHWM:")
        )
        return int(peak.split()[1]) * 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def return_freed_memory() -> None:
    """Give freed blocks back to the system.

    Where blocks of many sizes come and go, glibc would keep up to a model's worth of them. With
    another C library this does nothing.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
