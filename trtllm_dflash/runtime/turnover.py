"""How soon an engine's queue has room again, by how long requests have held its slots."""

from __future__ import annotations

import math

_WEIGHT = 0.1  # of a request, in the mean that later ones replace


class Turnover:
    """The mean time for which a request holds a slot, of those that ended last.

    One thread notes ends; any may ask.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._mean: float | None = None  # replaced as a whole, so that a reader needs no lock

    def note_end(self, held_seconds: float) -> None:
        """Take in a request that has given its slot back."""
        mean = self._mean
        self._mean = held_seconds if mean is None else mean + _WEIGHT * (held_seconds - mean)

    def seconds_until_room(self, num_requests: int) -> int | None:
        """Return in how many seconds a full queue has lost so many, at least 1.

        None if no request has ended yet.
        """
        if self._mean is None:
            return None
        return max(1, math.ceil(num_requests * self._mean / self._slots))
