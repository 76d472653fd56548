"""How tests measure and wait on a machine that has other things to do as well."""

from __future__ import annotations

import resource

# Seconds that a test waits for what takes much less; to be generous costs nothing.
PATIENCE = 300.0


def seconds_of_children() -> float:
    """Return the processor time of ended children, which a busy machine hardly changes."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
