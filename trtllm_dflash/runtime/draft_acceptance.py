"""How often drafts are accepted, by the class of their block and by their place in it.

A block's class says what has drafted it, and how long the match was if it was lookup
(`graph.ops.lookup`). It tells much of what will be accepted.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trtllm_dflash.options.draft_sources import NO_MATCH, SOURCE_BITS

Float64 = NDArray[np.float64]

NUM_BLOCK_CLASSES = NO_MATCH + 1
"""The drafter's, four of lookup's matches, and lookup's without one."""

# Of a draft in the first place, by the block's class, before anything was accepted or refused.
_FIRST_GUESSES = np.array([0.45, 0.5, 0.6, 0.7, 0.8, 0.1])
_SHARED_BLOCKS = 4.0  # blocks of its own that a sequence needs to count as much as all together
_PLACE_BEFORE = 4.0  # times that a place is reached, to count as much as the place before
_MEMORY = 64.0  # blocks after which older ones count half
# How often nothing matches, and how often each class of matches is found, at first.
_FIRST_SHARES = np.array([0.8, 0.05, 0.05, 0.05, 0.05])


class Acceptance:
    """What the blocks of one sequence, or of all, got accepted."""

    def __init__(self, block_size: int, shared: Acceptance | None = None) -> None:
        """Begin with nothing; `shared` stands for sequences that have had few blocks."""
        self._shared = shared
        self._reached = np.zeros((NUM_BLOCK_CLASSES, block_size - 1))
        self._accepted = np.zeros((NUM_BLOCK_CLASSES, block_size - 1))
        self._found = np.zeros(NO_MATCH)
        # As `expected_tokens` and `shares` have found them since the last block.
        self._tokens: Float64 | None = None
        self._shares: Float64 | None = None

    def note(self, block_class: int, num_drafts: int, num_accepted: int) -> None:
        """Count a block of which so many drafts were verified."""
        found = self._found
        found[block_class % NO_MATCH] += 1
        if found.sum() > _MEMORY:
            found /= 2
        if num_drafts:
            reached, accepted = self._reached[block_class], self._accepted[block_class]
            reached[: min(num_drafts, num_accepted + 1)] += 1
            accepted[:num_accepted] += 1
            if reached[0] > _MEMORY:
                reached /= 2
                accepted /= 2
        self._tokens = self._shares = None
        if self._shared is not None:
            self._shared.note(block_class, num_drafts, num_accepted)

    def probabilities(self) -> Float64:
        """Return p_1, p_2, … of each class [NUM_BLOCK_CLASSES, T-1].

        Where little was reached stands the place before.
        """
        if self._shared is not None:
            guesses = self._shared.probabilities()
            weighted = self._accepted + _SHARED_BLOCKS * guesses
            return weighted / (self._reached + _SHARED_BLOCKS)
        found = np.empty_like(self._reached)
        guess, weight = _FIRST_GUESSES, 1.0
        for place in range(found.shape[1]):
            reached, accepted = self._reached[:, place], self._accepted[:, place]
            guess, weight = (accepted + weight * guess) / (reached + weight), _PLACE_BEFORE
            found[:, place] = guess
        return found

    def expected_tokens(self) -> Float64:
        """Return the expected tokens of steps of 1, 2, … T tokens, [NUM_BLOCK_CLASSES, T]."""
        if self._tokens is None:
            accepted = np.cumprod(self.probabilities(), axis=1).cumsum(axis=1)
            self._tokens = np.concatenate(
                [np.ones((NUM_BLOCK_CLASSES, 1)), 1 + accepted], axis=1
            )
        return self._tokens

    def shares(self) -> Float64:
        """Return how often no match, and a match of each class, is found [NO_MATCH]."""
        if self._shares is None:
            guesses = _FIRST_SHARES if self._shared is None else self._shared.shares()
            weighted = self._found + _SHARED_BLOCKS * guesses
            self._shares = weighted / weighted.sum()
        return self._shares

    def of_block(self, block_class: int, sources: int) -> Float64:
        """Return the expected tokens [T] of a step that verifies a block of this class.

        What `sources` do not allow is worth nothing.
        """
        if sources == SOURCE_BITS["dflash"] and block_class:
            return np.ones(self._reached.shape[1] + 1)
        row: Float64 = self.expected_tokens()[block_class]
        return row

    def of_next(self, sources: int, *, draft: bool) -> Float64:
        """Return the expected tokens of the next block [NO_MATCH, T], by the match found.

        `draft`: the drafter fills it where lookup does not.
        """
        rows = self.expected_tokens()[:NO_MATCH].copy()
        if sources == SOURCE_BITS["dflash"]:
            rows[:] = rows[0] if draft else 1.0
        elif sources == SOURCE_BITS["lookup"] or not draft:
            rows[0] = self.expected_tokens()[NO_MATCH]
        return rows
