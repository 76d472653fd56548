"""`draft_len="auto"`: as many drafts in a step as pay, by what is accepted and what steps cost.

A decode step of w tokens a sequence gives each of them its bonus and the drafts that are accepted:

    1 + sum over i = 1 … w-1 of p_1 · … · p_i

where p_i is how often draft i is accepted once those before it are. It is counted for each sequence
and each source of drafts. A sequence that has had few blocks takes over what all have together.
The step's time is measured for each batch size and width. The width with the most tokens a second
is chosen. One that has never run is tried, and now and then another than the best one, since times
change with the length of the text.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

_FIRST_GUESS = 0.5  # of every p_i, before anything was accepted or refused
_SHARED_BLOCKS = 4.0  # blocks of its own that a sequence needs to count as much as all together
_MEMORY = 64.0  # blocks after which older ones count half
_TIME_SHARE = 0.2  # of the newest measurement in a width's time
_TRY_EVERY = 50  # steps of one batch size between two trials of another width


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


class Candidate(NamedTuple):
    """A sequence of the next step: what it got accepted, and what has drafted its block."""

    acceptance: Acceptance
    source: str


@dataclass
class _Times:
    """Seconds of steps of one batch size, by width."""

    seconds: dict[int, float] = field(default_factory=dict)
    last_run: dict[int, int] = field(default_factory=dict)  # the step's number
    num_steps: int = 0


class DraftLenChooser:
    """Chooses the widths of an engine's decode steps; it learns as long as the engine is loaded."""

    def __init__(self, block_size: int, widths: Sequence[int]) -> None:
        """Take the block and the widths that steps may have, the first of which begins."""
        self.overall = Acceptance(block_size)
        self._block_size = block_size
        self._widths = tuple(widths)
        self._times: dict[int, _Times] = defaultdict(_Times)

    def new_sequence(self) -> Acceptance:
        """Return what counts a new sequence's blocks."""
        return Acceptance(self._block_size, self.overall)

    def choose(self, batch: int, candidates: Sequence[Candidate]) -> int:
        """Return the width of the next step of `batch` sequences; candidates are those asking."""
        times = self._times[batch]
        times.num_steps += 1
        untried = [width for width in self._widths if width not in times.last_run]
        if untried:
            width = untried[0]
        elif times.num_steps % _TRY_EVERY == 0:
            width = min(times.last_run, key=lambda width: times.last_run[width])
        else:
            width = self._best(times, candidates)
        times.last_run[width] = times.num_steps
        return width

    def note_time(self, batch: int, width: int, seconds: float) -> None:
        """Take in what a step took."""
        known = self._times[batch].seconds
        if width not in known:
            known[width] = seconds
        else:
            known[width] += _TIME_SHARE * (seconds - known[width])

    def _best(self, times: _Times, candidates: Sequence[Candidate]) -> int:
        """Return the width with the most tokens a second, of those whose time is known."""
        gains = [
            candidate.acceptance.expected_tokens(candidate.source) for candidate in candidates
        ]
        known = {width: seconds for width, seconds in times.seconds.items() if seconds > 0}
        if not known:
            return self._widths[0]

        def tokens_a_second(width: int) -> float:
            return sum(tokens[width - 1] for tokens in gains) / known[width]

        return max(known, key=tokens_a_second)
