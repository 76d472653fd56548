"""The prefix cache: a prompt that begins like an earlier sequence starts where that one is known.

Behind prompts and answers the session copies what a slot holds: the target's keys and values, the
drafter's, and of linear attention the states. A later prompt with the same first tokens gets them
into its slot, and only the rest of it is prefilled. The least recently used copy goes first.

The copies are what a step has computed, so tokens and accepted drafts are those of a cold start.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.runtime.request import Request
from trtllm_dflash.runtime.sessions.base import Int64, Session
from trtllm_dflash.runtime.sessions.slot_copy import Prefix, SlotCopy, is_cut_anywhere

LEAST_TOKENS = 16  # a shorter prefix is as soon computed
SNAPSHOT_TOKENS = 1024  # of a prompt, where a prefix must be a whole copy


@dataclass(eq=False)
class _Known:
    token_ids: Int64
    copy: SlotCopy


class NoPrefixCache:
    """Knows nothing of any prompt."""

    def find(self, input_ids: Int64) -> Prefix | None:  # noqa: ARG002
        """Return None."""
        return None

    def chunk_width(self, num_prefilled: int, width: int) -> int:  # noqa: ARG002
        """Return `width`."""
        return width

    def after_chunk(self, slot: int, input_ids: Int64, num_prefilled: int) -> None:
        """Keep nothing."""

    def after_answer(self, request: Request) -> None:
        """Keep nothing."""


NO_PREFIX_CACHE = NoPrefixCache()


class PrefixCache:
    """Finds and keeps the copies of one session's slots; for one thread at a time."""

    def __init__(
        self,
        session: Session,
        config: EngineConfig,
        *,
        least_tokens: int = LEAST_TOKENS,
        snapshot_tokens: int = SNAPSHOT_TOKENS,
    ) -> None:
        """Begin with nothing; the session has the budget.

        least_tokens     a prefix has at least so many.
        snapshot_tokens  how often a prompt is copied on its way, in an engine whose copies cannot
                         be cut.
        """
        self._session = session
        self._least = least_tokens
        self._cut_anywhere = is_cut_anywhere(config)
        self._interval = None if self._cut_anywhere else snapshot_tokens
        # By their first tokens; the last used one is the last of all.
        self._entries: dict[_Known, None] = {}

    def find(self, input_ids: Int64) -> Prefix | None:
        """Return the longest prefix of a prompt that is known, without its last token."""
        best, best_length = None, self._least - 1
        for entry in self._entries:
            length = self._usable(entry, input_ids[:-1])
            if length > best_length:
                best, best_length = entry, length
        if best is None:
            return None
        self._touch(best)
        return Prefix(best.copy, best_length)

    def chunk_width(self, num_prefilled: int, width: int) -> int:
        """Return `width`, or less where the next copy of the prompt is due before."""
        if self._interval is None:
            return width
        return min(width, self._interval - num_prefilled % self._interval)

    def after_chunk(self, slot: int, input_ids: Int64, num_prefilled: int) -> None:
        """Keep a prompt whose chunk was launched, if it is complete or a copy of it is due."""
        is_due = self._interval is not None and num_prefilled % self._interval == 0
        if is_due or num_prefilled == len(input_ids):
            self._keep(slot, input_ids[:num_prefilled])

    def after_answer(self, request: Request) -> None:
        """Keep a sequence that has ended by itself; no step is in flight.

        A step behind its end may have moved a state on, or written over a ring. So this is for
        engines that have neither.
        """
        if self._cut_anywhere and request.finish_reason != "cancelled":
            assert request.slot is not None
            self._keep(request.slot, request.positions_held())

    def _usable(self, entry: _Known, token_ids: Int64) -> int:
        """Return how many of these tokens the entry can stand for."""
        length = _common(entry.token_ids, token_ids)
        return length if self._cut_anywhere or length == len(entry.token_ids) else 0

    def _keep(self, slot: int, token_ids: Int64) -> None:
        if len(token_ids) < self._least:
            return
        shorter = []
        for entry in self._entries:
            common = _common(entry.token_ids, token_ids)
            if common == len(token_ids) and self._usable(entry, token_ids) == common:
                self._touch(entry)
                return
            if self._cut_anywhere and common == len(entry.token_ids):
                shorter.append(entry)
        for entry in shorter:  # the new copy begins with all that they have
            self._drop(entry)
        while (copy := self._session.save_slot(slot, len(token_ids))) is None:
            if not self._entries:
                return
            self._drop(next(iter(self._entries)))
        self._entries[_Known(token_ids.copy(), copy)] = None

    def _touch(self, entry: _Known) -> None:
        self._entries[entry] = self._entries.pop(entry)

    def _drop(self, entry: _Known) -> None:
        del self._entries[entry]
        self._session.drop_copy(entry.copy)


def _common(one: Int64, other: Int64) -> int:
    """Return how many first tokens two sequences have in common."""
    length = min(len(one), len(other))
    unequal = np.flatnonzero(one[:length] != other[:length])
    return int(unequal[0]) if len(unequal) else length
