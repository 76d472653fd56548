"""How many threads a CPU session uses."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from trtllm_dflash.errors import UsageError

VARIABLE = "DFLASH_NUM_THREADS"


def resolve_num_threads(requested: int | None, environment: Mapping[str, str] = os.environ) -> int:
    """The number asked for, else DFLASH_NUM_THREADS, else one for each physical core that this process may use."""
    if requested is not None:
        if isinstance(requested, bool) or requested < 1:
            raise UsageError(f"num_threads is {requested!r}, expected an integer of at least 1.")
        return requested
    text = environment.get(VARIABLE, "")
    if not text:
        return available_cores()
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"{VARIABLE} is {text!r}, expected an integer of at least 1. Set a number or unset it.")
    return int(text)


def available_cores(topology: Path = Path("/sys/devices/system/cpu")) -> int:
    """Physical cores among the processors in this process's affinity mask; hyper-threads of one core count once.

    Two threads on one core share its vector units, so the second one slows matrix products down.
    """
    processors = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    return len({_core_of(processor, topology) for processor in processors})


def _core_of(processor: int, topology: Path) -> str:
    siblings = topology / f"cpu{processor}" / "topology" / "thread_siblings_list"
    return siblings.read_text() if siblings.is_file() else str(processor)
