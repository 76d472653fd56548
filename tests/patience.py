"""How tests measure and wait on a machine that has other things to do as well."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable

# Seconds that a test waits for what takes much less; to be generous costs nothing.
PATIENCE = 300.0


def seconds_of_children() -> float:
    """Return the processor time of ended children, which a busy machine hardly changes."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def wait_for(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """Fail unless the condition comes true in time."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.01)
