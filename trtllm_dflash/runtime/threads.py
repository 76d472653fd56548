"""How many threads a CPU session uses."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from trtllm_dflash.options.checks import check_integer, parse_integer
from trtllm_dflash.options.shared import MAX_NUM_THREADS

VARIABLE = "DFLASH_NUM_THREADS"
_TOPOLOGY = Path("/sys/devices/system/cpu")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def resolve_num_threads(
    requested: int | None, environment: Mapping[str, str] = os.environ
) -> int:
    """Return `requested`, else DFLASH_NUM_THREADS, else one thread for each core available."""
    if requested is not None:
        check_integer("num_threads", requested, low=1, high=MAX_NUM_THREADS)
        return requested
    text = environment.get(VARIABLE, "")
    if not text:
        return available_cores()
    advice = " Set a number or unset it."
    return parse_integer(VARIABLE, text, low=1, high=MAX_NUM_THREADS, advice=advice)


def available_cores(topology: Path = _TOPOLOGY, quota: Path = _QUOTA) -> int:
    """Return the physical cores that this process may use, at most its container's quota.

    Hyper-threads count once: two threads on one core share its vector units. Threads beyond the
    quota would be stopped in the middle of a matrix product.
    """
    processors = (
        os.sched_getaffinity(0)
        if hasattr(os, "sched_getaffinity")
        else set(range(os.cpu_count() or 1))
    )
    cores = len({_core_of(processor, topology) for processor in processors})
    return min(cores, _quota_of(quota) or cores)


def _core_of(processor: int, topology: Path) -> str:
    siblings = topology / f"cpu{processor}" / "topology" / "thread_siblings_list"
    return siblings.read_text(encoding="utf-8") if siblings.is_file() else str(processor)


def _quota_of(path: Path) -> int | None:
    """Return the whole cores of a cgroup's `cpu.max`, at least 1, or None without a limit.

    "200000 100000" is 2 cores.
    """
    if not path.is_file():
        return None
    microseconds, period = path.read_text(encoding="utf-8").split()
    return None if microseconds == "max" else max(1, int(microseconds) // int(period))
