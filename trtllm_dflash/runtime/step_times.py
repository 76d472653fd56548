"""What decode steps of one batch size take, measured and estimated from what was measured."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

_WAITED_STEPS = 600  # for a kind of step that never ran
_STALE_STEPS = 100  # between two steps of a kind: its earlier times are old
_KEPT = 5  # measurements of a kind of step: its time is their median
# Before anything is known: a row more, and the drafter's block, of a step's time.
_ROW_SHARE, _BLOCK_SHARE = 0.05, 0.1


class StepPlan(NamedTuple):
    """A decode step: tokens of each sequence, and whether the drafter drafts the next blocks."""

    width: int
    draft: bool


class StepTimes:
    """Seconds of the steps of one batch size."""

    def __init__(self) -> None:
        self.last_run: dict[StepPlan, float] = {}  # the time of all steps before it
        self.time = 0.0  # of all steps
        self._measured: dict[StepPlan, deque[float]] = {}
        self._seconds: dict[StepPlan, float] = {}

    def note_run(self, plan: StepPlan) -> None:
        """Remember that such a step is launched; what is old no longer counts once it has run."""
        kept = self._measured.get(plan)
        waited = self.time - self.last_run.get(plan, self.time)
        if kept and waited > _STALE_STEPS * self._seconds[plan]:
            kept.clear()
        self.last_run[plan] = self.time

    def note_time(self, plan: StepPlan, seconds: float) -> None:
        """Take in what a step took."""
        kept = self._measured.setdefault(plan, deque(maxlen=_KEPT))
        kept.append(seconds)
        self._seconds[plan] = median(kept)
        self.time += seconds

    def allowance(self, plan: StepPlan) -> float:
        """Return the seconds since such a step ran; one that never ran has been waited for long."""
        if plan in self.last_run:
            return self.time - self.last_run[plan]
        return self.time + _WAITED_STEPS * min(self._seconds.values())

    @property
    def is_known(self) -> bool:
        """Tell whether any step was measured."""
        return bool(self._seconds)

    def seconds(self, plan: StepPlan) -> float:
        """Return what a step takes, estimated from others if it never ran; one must have run."""
        if plan in self._seconds:
            return self._seconds[plan]
        same = self._line(plan.draft)
        other = self._line(not plan.draft)
        if len(same) > 1 or not other:
            return _on_line(same, plan.width)
        if not same:
            factor = 1 + _BLOCK_SHARE if plan.draft else 1 / (1 + _BLOCK_SHARE)
            return factor * _on_line(other, plan.width)
        ((width, seconds),) = same
        return seconds * _on_line(other, plan.width) / _on_line(other, width)

    def _line(self, draft: bool) -> list[tuple[int, float]]:
        """Return widths and seconds of the steps that were measured, by width."""
        return sorted(
            (plan.width, seconds)
            for plan, seconds in self._seconds.items()
            if plan.draft == draft
        )


def _on_line(points: Sequence[tuple[int, float]], width: int) -> float:
    """Return the seconds at a width: between two points, or beyond the last two of them."""
    if len(points) == 1:
        ((known, seconds),) = points
        return seconds * (1 + _ROW_SHARE * width) / (1 + _ROW_SHARE * known)
    after = next((i for i, (known, _) in enumerate(points) if known >= width), len(points) - 1)
    (low, first), (high, second) = points[max(after, 1) - 1], points[max(after, 1)]
    found = first + (second - first) * (width - low) / (high - low)
    return max(found, 0.5 * min(first, second))
