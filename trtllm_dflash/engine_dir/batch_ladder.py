"""The batch sizes that decode steps of a GPU session have.

A step's kernels are compiled, and its CUDA graph is captured, for one number of rows. So there are
steps for few numbers: 1, 2, 4, 8, … and the number of slots. A step of another number of slots is
padded up to the next of them.
"""

from __future__ import annotations

from itertools import pairwise, takewhile

_POWERS = [1 << exponent for exponent in range(31)]


class BatchLadder:
    """The numbers of rows of the decode steps of an engine."""

    def __init__(self, slots: int) -> None:
        """Make those of an engine of so many slots."""
        self.rungs = (*takewhile(lambda size: size < slots, _POWERS), slots)

    def rung(self, count: int) -> int:
        """Return the rows of a step in which `count` slots decode: at least so many."""
        return next(size for size in self.rungs if size >= count)

    @property
    def most_padded(self) -> int:
        """Return the most rows of a step whose slots do not decode."""
        return max((high - low - 1 for low, high in pairwise(self.rungs)), default=0)
