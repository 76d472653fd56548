"""A CPU session whose drafts come from an oracle: as many are right as a random number says.

A random drafter is hardly ever accepted, so a fault in what a step does with accepted drafts would
stay unseen. Nothing but `next_ids` between two steps is changed: the step still verifies and
decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from trtllm_dflash.options.draft_sources import SOURCE_BITS
from trtllm_dflash.runtime.sessions.base import Int64, SlotSampling, StepResult
from trtllm_dflash.runtime.sessions.ort import OrtSession
from trtllm_dflash.runtime.sessions.slot_copy import Prefix


class OracleSession:
    """An `OrtSession` that overwrites the drafts of every slot before each decode step.

    `texts` are prompts with the answers that the target gives, some tokens longer than any test
    generates. A slot whose text is none of them keeps the drafts of its drafter. `chunk` is the
    width of a prompt's chunks, at most that for which the engine was built.
    """

    def __init__(
        self,
        session: OrtSession,
        texts: Sequence[Sequence[int]],
        vocab_size: int,
        *,
        seed: int = 0,
        chunk: int | None = None,
    ) -> None:
        self.max_num_tokens = chunk or session.max_num_tokens
        self.offered: list[int] = []  # right drafts of each slot in each step
        self.accepted: list[int] = []
        # texts up to their anchors, and what the drafter proposed behind them
        self.proposals: list[tuple[list[int], list[int]]] = []
        self._session = session
        self._texts = [list(text) for text in texts]
        self._vocab_size = vocab_size
        self._random = np.random.default_rng(seed)
        self._cached: dict[int, list[int]] = {}  # the tokens in each slot's caches
        self._decoding: dict[int, int | None] = {}  # slots of the step in flight: right drafts

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def open_slot(
        self, slot: int, sampling: SlotSampling, prefix: Prefix | None = None
    ) -> None:
        """Empty a slot; an oracle has no prefix cache."""
        assert prefix is None
        self._cached[slot] = []
        own = replace(sampling, draft_sources=SOURCE_BITS["dflash"])
        self._session.open_slot(slot, own)

    def prefill(self, slot: int, input_ids: Int64, *, draft: bool = True) -> None:
        """Append a chunk of a prompt."""
        self._cached[slot] += input_ids.tolist()
        self._decoding = {}
        self._session.prefill(slot, input_ids, draft=draft)

    def move_slot(self, src: int, dst: int) -> None:
        """Move a slot and what is known of it."""
        self._cached[dst] = self._cached.pop(src)
        self._session.move_slot(src, dst)

    def decode(self, count: int, width: int, *, draft: bool = True) -> None:
        """Put the oracle's drafts behind each slot's anchor, and run the step."""
        self._decoding = {slot: self._overwrite(slot, width) for slot in range(count)}
        self._session.decode(count, width, draft=draft)

    def collect(self) -> StepResult:
        """Note what the step has committed."""
        result = self._session.collect()
        for row, (slot, right) in enumerate(self._decoding.items()):
            accepted = int(result.num_new[row]) - 1
            self._cached[slot] += result.new_ids[row, :accepted].tolist()
            if right is not None:
                self.offered.append(right)
                self.accepted.append(accepted)
        return result

    def _overwrite(self, slot: int, width: int) -> int | None:
        """Overwrite a slot's drafts; return how many are right, None where the text is not known.

        Behind the right drafts comes a wrong one, and behind that anything.
        """
        block = self._session._slots["next_ids"][slot]
        cached = self._cached[slot]
        cached.append(int(block[0]))
        true = self._continuation(cached, width - 1)
        if true is None:
            return None
        self.proposals.append((list(cached), block[1:].tolist()))
        right = int(self._random.integers(0, width))
        drafts = self._random.integers(0, self._vocab_size, width - 1)
        drafts[:right] = true[:right]
        if right < width - 1:
            drafts[right] = (true[right] + 1) % self._vocab_size
        block[1:width] = drafts
        return right

    def _continuation(self, text: list[int], count: int) -> list[int] | None:
        for whole in self._texts:
            if whole[: len(text)] == text and len(whole) >= len(text) + count:
                return whole[len(text) : len(text) + count]
        return None
