"""A session driven step by step, with drafts that are right to a known place.

Random drafters are hardly ever right, so their drafts are replaced before a step verifies them.
What the drafter itself gave is kept, since no token shows it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trtllm_dflash.options.draft_sources import SOURCE_BITS
from trtllm_dflash.runtime.sessions.base import SlotSampling, StepResult

Tokens = list[list[int]]


@dataclass(frozen=True)
class Trace:
    """New tokens by slot, and the drafts of each slot behind each of its steps."""

    tokens: Tokens
    drafts: list[list[list[int]]] = field(default_factory=list)
    accepted: int = 0  # drafts in all


class _Tracer:
    """A session with prompts in its first slots; `next_ids` gives its own array [slots, block]."""

    def __init__(
        self, session: Any, next_ids: Callable[[], np.ndarray], answers: Tokens
    ) -> None:
        self._session = session
        self._next_ids = next_ids
        self._answers = list(answers)
        self._block = session._config.block_size
        self._step = 0
        self.tokens: Tokens = [[] for _ in answers]
        self.drafts: list[list[list[int]]] = [[] for _ in answers]
        self.accepted = 0

    def prefill(self, slot: int, prompt: list[int], drafts: str = "both") -> None:
        session, widest = self._session, self._session._config.max_num_tokens
        bits = SOURCE_BITS[drafts]
        session.open_slot(slot, SlotSampling(draft_sources=bits))
        for begin in range(0, len(prompt), widest):
            session.prefill(slot, np.array(prompt[begin : begin + widest]))
            result = session.collect()
        self._take(slot, slot, result, 0)

    def decode(self, answers: Sequence[int], until: int) -> None:
        """Decode the answers of these numbers, slot by slot, until one would have more tokens."""
        while all(len(self.tokens[answer]) + self._block <= until for answer in answers):
            for slot, answer in enumerate(answers):
                done = len(self.tokens[answer])
                right = self._answers[answer][done : done + self._block - 1]
                place = (self._step + slot) % self._block
                self._next_ids()[slot, 1:] = _spoiled(right, place)
            self._session.decode(len(answers), self._block)
            result = self._session.collect()
            for slot, answer in enumerate(answers):
                self._take(slot, answer, result, slot)
            self._step += 1

    def _take(self, slot: int, answer: int, result: StepResult, row: int) -> None:
        count = int(result.num_new[row])
        assert 1 <= count <= self._block, f"a step with {count} new tokens"
        self.tokens[answer] += result.new_ids[row, :count].tolist()
        self.drafts[answer].append(self._next_ids()[slot, 1:].tolist())
        self.accepted += count - 1


def trace(
    session: Any, next_ids: Callable[[], np.ndarray], prompts: Tokens, answers: Tokens
) -> Trace:
    """Decode prompts with drafts of `answers`, of which another number is right in each step.

    The first prompt runs alone, then all of them. At last the last one goes on in the first slot.
    """
    tracer = _Tracer(session, next_ids, answers)
    end = min(map(len, answers))
    tracer.prefill(0, prompts[0])
    tracer.decode([0], end // 2)
    for slot in range(1, len(prompts)):
        # The last one moves. Its drafts are the drafter's, which show what its caches hold.
        drafts = "dflash" if slot == len(prompts) - 1 else "both"
        tracer.prefill(slot, prompts[slot], drafts)
    tracer.decode(range(len(prompts)), end)
    last = len(prompts) - 1
    session.move_slot(last, 0)
    tracer.decode([last], len(answers[last]))
    return Trace(tracer.tokens, tracer.drafts, tracer.accepted)


def _spoiled(right: Sequence[int], place: int) -> list[int]:
    """Return drafts of which the one at `place` is wrong, if there is one."""
    made = list(right)
    if place < len(made):
        made[place] = 1 + made[place] % 2  # of the first ids, which all vocabularies have
    return made


def same_share(ours: Trace, theirs: Trace) -> float:
    """Return which share of the drafts is the same; numbers of steps may differ by a few."""
    same = []
    for slot, other in zip(ours.drafts, theirs.drafts, strict=True):
        for step, twin in zip(slot, other, strict=False):
            same += [a == b for a, b in zip(step, twin, strict=True)]
    return float(np.mean(same))
