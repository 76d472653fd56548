"""How a served request waits: its place among others, and for how long."""

from __future__ import annotations

from dataclasses import dataclass, field
from numbers import Real
from time import perf_counter
from typing import Any

from trtllm_dflash.errors import UsageError
from trtllm_dflash.options.checks import check_integer, shown
from trtllm_dflash.options.row_sampling import MAX_INT32

MAX_TIMEOUT_SECONDS = 1e6
MAX_WAITING = 128  # requests that wait for a slot, unless a server is told otherwise


@dataclass(frozen=True, kw_only=True)
class Queueing:
    """A request's place in the queue, which never changes its tokens.

    priority          the smaller number gets a slot first, as in vLLM; equals go in their order.
                      What has a slot keeps it.
    timeout_seconds   its answer is whole by then, or it ends with a DeadlineError; None: no limit.
    arrived           when the time began (perf_counter).

    Raises:
        UsageError: for a value out of range.
    """

    priority: int = 0
    timeout_seconds: float | None = None
    arrived: float = field(default_factory=perf_counter, compare=False, repr=False)

    def __post_init__(self) -> None:
        check_integer("priority", self.priority, low=-MAX_INT32 - 1, high=MAX_INT32)
        if self.timeout_seconds is not None and not _is_duration(self.timeout_seconds):
            raise UsageError(
                f"timeout_seconds is {shown(self.timeout_seconds)}, expected a number above 0 and"
                f" at most {MAX_TIMEOUT_SECONDS:g}."
            )

    def is_overdue(self, now: float) -> bool:
        """Tell whether its time is over."""
        return self.timeout_seconds is not None and now - self.arrived > self.timeout_seconds

    def seconds_left(self) -> float | None:
        """Return how much of its time is left, at least 0; None without a limit."""
        if self.timeout_seconds is None:
            return None
        return max(0.0, self.timeout_seconds - (perf_counter() - self.arrived))


def _is_duration(value: Any) -> bool:
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    return is_number and 0 < float(value) <= MAX_TIMEOUT_SECONDS
