"""How often drafts are accepted, by their place in the block and by what has drafted them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

_FIRST_GUESS = 0.5  # of every place, before anything was accepted or refused
_SHARED_BLOCKS = 4.0  # blocks of its own that a sequence needs to count as much as all together
_MEMORY = 64.0  # blocks after which older ones count half


@dataclass
class _Counts:
    """How often draft i + 1 was reached, and how often it was accepted then."""

    reached: list[float]
    accepted: list[float]

    def note(self, num_drafts: int, num_accepted: int) -> None:
        for place in range(min(num_drafts, num_accepted + 1)):
            self.reached[place] += 1
            self.accepted[place] += place < num_accepted
        if self.reached[0] > _MEMORY:
            self.reached = [count / 2 for count in self.reached]
            self.accepted = [count / 2 for count in self.accepted]


class Acceptance:
    """What the blocks of one sequence, or of all, got accepted, by the source of their drafts."""

    def __init__(self, block_size: int, shared: Acceptance | None = None) -> None:
        """Begin with nothing; `shared` stands for sequences that have had few blocks."""
        self._size = block_size - 1
        self._shared = shared
        self._counts: dict[str, _Counts] = defaultdict(
            lambda: _Counts([0.0] * self._size, [0.0] * self._size)
        )

    def note(self, source: str, num_drafts: int, num_accepted: int) -> None:
        """Count a block of which so many drafts were verified."""
        if num_drafts:
            self._counts[source].note(num_drafts, num_accepted)
            if self._shared is not None:
                self._shared.note(source, num_drafts, num_accepted)

    def probabilities(self, source: str) -> list[float]:
        """Return p_1, p_2, …; where nothing was reached stands the place before."""
        counts, found = self._counts[source], list[float]()
        shared = None if self._shared is None else self._shared.probabilities(source)
        for place in range(self._size):
            guess = found[-1] if found else _FIRST_GUESS
            guess = guess if shared is None else shared[place]
            weight = _SHARED_BLOCKS if shared is not None else 1.0
            accepted = counts.accepted[place] + weight * guess
            found.append(accepted / (counts.reached[place] + weight))
        return found

    def expected_tokens(self, source: str) -> list[float]:
        """Return the tokens that a step of 1, 2, … tokens is expected to give."""
        tokens, product = [1.0], 1.0
        for probability in self.probabilities(source):
            product *= probability
            tokens.append(tokens[-1] + product)
        return tokens
