"""A request on its way through the slots: what it has got so far, and how it ended."""

from __future__ import annotations

from typing import NamedTuple

from trtllm_dflash.runtime.outputs import FinishReason
from trtllm_dflash.runtime.request import Request


class ActiveSequence:
    """A request that waits, prompts or generates, and its new tokens so far."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.slot: int | None = None  # None while it waits
        self.admitted: float | None = None  # when it got its slot (perf_counter)
        self.token_ids: list[int] = []
        self.acceptance_lengths: list[int] = []
        self.num_draft_tokens = 0
        self.finish_reason: FinishReason | None = None
        self.prefill_seconds = 0.0
        self.decode_seconds = 0.0
        self.num_prefilled = 0  # prompt tokens put under way
        self.overtaken = 0  # prompt tokens of others that were let past this prompt
        self.steps_under_way = 0  # generation steps

    @property
    def remaining_prompt_tokens(self) -> int:
        """Prompt tokens that are not under way yet."""
        return len(self.request.input_ids) - self.num_prefilled

    @property
    def positions(self) -> int:
        """Cache positions that it holds, as far as decided: all of its tokens but the anchor."""
        return self.num_prefilled + max(0, len(self.token_ids) - 1)

    @property
    def remaining_tokens(self) -> int:
        """How many more tokens it may get."""
        return self.request.max_tokens - len(self.token_ids)

    @property
    def needs_more_steps(self) -> bool:
        """Whether it may still want tokens after the steps under way, each of which brings at least
        one.
        """
        return self.finish_reason is None and self.remaining_tokens > self.steps_under_way

    def commit(self, token_ids: list[int]) -> list[int]:
        """Append what a step decided, cut after a stop token and at the limit, and return the
        tokens kept.
        """
        room = self.remaining_tokens
        kept = token_ids[:room]
        stop = next(
            (place for place, token in enumerate(kept) if token in self.request.stop_token_ids),
            None,
        )
        if stop is not None:
            kept = kept[: stop + 1]
            self.finish_reason = "stop"
        elif len(kept) == room:
            self.finish_reason = "length"
        self.token_ids += kept
        return kept

    def truncate(self, count: int) -> None:
        """Forget the last tokens of the last step: they are behind a stop word, and are no part of
        the answer.
        """
        if count:
            del self.token_ids[-count:]
            self.acceptance_lengths[-1] -= count


class Update(NamedTuple):
    """Tokens that a sequence has just gained."""

    sequence: ActiveSequence
    token_ids: list[int]
