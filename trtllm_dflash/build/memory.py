"""How much memory this process has needed."""

from __future__ import annotations

import sys
from pathlib import Path


def peak_memory() -> int:
    """Most resident bytes of this process so far, pages of mapped weight files included."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not ru_maxrss, which on Linux starts from the parent's size.
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(peak.split()[1]) * 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
