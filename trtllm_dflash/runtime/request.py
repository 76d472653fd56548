"""A request on its way through the slots: what was asked, what it has got, how it ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from trtllm_dflash.errors import DFlashError
from trtllm_dflash.options.draft_len_schedule import DraftLenSchedule
from trtllm_dflash.options.draft_sources import (
    SOURCE_BITS,
    SOURCES,
    DraftCount,
    DraftSource,
    TokenSource,
    source_of_class,
)
from trtllm_dflash.runtime.draft_acceptance import Acceptance
from trtllm_dflash.runtime.grammar.constraint import Constraint
from trtllm_dflash.runtime.outputs import FinishReason, TokenLogprobs
from trtllm_dflash.runtime.sessions.base import Int64, SlotSampling


@dataclass(frozen=True)
class StepWidths:
    """Tokens of each slot in a decode step: the anchor and the drafts to verify."""

    draft_len: int
    schedule: DraftLenSchedule | None = None
    is_auto: bool = False  # at most draft_len, as many as pay

    def width_for(self, batch: int) -> int:
        """Return the width of a step of `batch` slots."""
        return 1 + (self.draft_len if self.schedule is None else self.schedule.draft_len(batch))

    @property
    def max_width(self) -> int:
        """Return the largest width that a step can have."""
        return 1 + max(self.draft_lens)

    @property
    def draft_lens(self) -> frozenset[int]:
        """Return the numbers of drafts that steps can have."""
        if self.schedule is None:
            return frozenset({self.draft_len})
        return self.schedule.draft_lens


@dataclass(eq=False)
class Request:
    """One sequence to generate, and how far it has come."""

    index: int
    input_ids: Int64
    max_tokens: int  # already within max_seq_len
    stop_token_ids: frozenset[int]
    widths: StepWidths
    sampling: SlotSampling
    seed: int | None = None  # None for greedy decoding
    sample_index: int = 0  # which of the prompt's answers
    min_tokens: int = 0  # as many tokens come before one that ends the answer
    logprobs: int | None = None  # None: not wanted; else how many of the most likely tokens
    priority: int = 0  # the smaller gets a slot first

    slot: int | None = None  # None while it waits
    admitted: float | None = None  # when it got its slot (perf_counter)
    num_cached: int = 0  # prompt tokens that the prefix cache knew
    num_prefilled: int = 0  # prompt tokens that are known or that a step has taken
    num_overtaken: int = 0  # prompt tokens of others that were let past this prompt
    num_steps_in_flight: int = 0  # decode steps
    output_ids: list[int] = field(default_factory=list)
    output_logprobs: list[TokenLogprobs] = field(default_factory=list)  # if wanted, of each
    acceptance_lengths: list[int] = field(default_factory=list)
    block_sources: list[DraftSource] = field(default_factory=list)  # of each decode step
    next_class: int = 0  # of the block that its next step verifies
    constraint: Constraint | None = None  # of one with a grammar
    next_drafts: list[int] = field(
        default_factory=list
    )  # of its next block, if it has a grammar
    acceptance: Acceptance | None = None  # of one whose number of drafts is chosen
    num_verified: Counter[DraftSource] = field(default_factory=Counter)  # drafts
    finish_reason: FinishReason | None = None
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0

    @property
    def next_source(self) -> DraftSource:
        """Return what has drafted the block that its next step verifies."""
        return source_of_class(self.next_class)

    @property
    def allows_drafter(self) -> bool:
        """Tell whether the drafter may draft for it."""
        allowed = self.sampling.draft_sources & SOURCE_BITS["dflash"]
        return bool(allowed) and self.widths.max_width > 1

    @property
    def num_to_prefill(self) -> int:
        """Return the number of prompt tokens that no step has taken yet."""
        return len(self.input_ids) - self.num_prefilled

    @property
    def num_positions(self) -> int:
        """Return the cache positions that it holds: all of its tokens but the anchor."""
        return self.num_prefilled + max(0, len(self.output_ids) - 1)

    @property
    def remaining_tokens(self) -> int:
        """Return how many more tokens it may get."""
        return self.max_tokens - len(self.output_ids)

    @property
    def needs_more_steps(self) -> bool:
        """Tell whether it may want tokens after the steps in flight, of one or more tokens each."""
        return self.finish_reason is None and self.remaining_tokens > self.num_steps_in_flight

    def positions_held(self) -> Int64:
        """Return the tokens of the positions that its slot holds: all of its own but the last."""
        return np.array([*self.input_ids.tolist(), *self.output_ids[:-1]], np.int64)

    @property
    def drafts_by_source(self) -> dict[DraftSource, DraftCount]:
        """Return its verified and accepted drafts by source, of sources that had any."""
        accepted = Counter[DraftSource]()
        for length, source in zip(self.acceptance_lengths, self.block_sources, strict=True):
            accepted[source] += length - 1
        verified = self.num_verified
        return {
            source: DraftCount(verified[source], accepted[source])
            for source in SOURCES
            if verified[source]
        }

    def sources_of_step(self, num_kept: int, num_new: int) -> list[TokenSource]:
        """Return where the tokens come from that were kept of a decode step's `num_new`.

        The last of all its tokens is the target's own, and the others are accepted drafts.
        """
        sources: list[TokenSource] = [self.next_source] * (num_new - 1)
        return [*sources, "target"][:num_kept]

    def count_step(self, num_kept: int, num_drafts: int) -> None:
        """Count a decode step that verified so many drafts and gave so many tokens."""
        self.acceptance_lengths.append(num_kept)
        self.block_sources.append(self.next_source)
        self.num_verified[self.next_source] += num_drafts
        if self.acceptance is not None and self.finish_reason is None:
            self.acceptance.note(self.next_class, num_drafts, num_kept - 1)

    def commit(self, token_ids: list[int]) -> list[int]:
        """Append a step's tokens up to a stop token or the limit, and return those kept.

        A stop token among the first `min_tokens` of the answer is a token like others. An answer
        with a grammar ends, as "stop", where the grammar does.

        Raises:
            UsageError, EngineError: for a grammar, as `Constraint.commit`.
        """
        if self.constraint is not None:
            token_ids = token_ids[: self.constraint.commit(token_ids)]
        limit = self.remaining_tokens
        kept = token_ids[:limit]
        first = max(0, self.min_tokens - len(self.output_ids))
        stops = [
            place for place in range(first, len(kept)) if kept[place] in self.stop_token_ids
        ]
        if stops:
            kept = kept[: stops[0] + 1]
            self.finish_reason = "stop"
        elif len(kept) == limit:
            self.finish_reason = "length"
        self.output_ids += kept
        if self.constraint is not None and self.constraint.has_ended:
            self.finish_reason = "stop" if len(kept) == len(token_ids) else self.finish_reason
        return kept

    def last_logprobs(self, count: int) -> list[TokenLogprobs] | None:
        """Return those of the last `count` tokens, if they are wanted."""
        if self.logprobs is None:
            return None
        return self.output_logprobs[len(self.output_logprobs) - count :]

    def truncate(self, count: int) -> None:
        """Drop the last `count` tokens of the last step: they follow a stop word."""
        if count:
            del self.output_ids[-count:]
            del self.output_logprobs[len(self.output_ids) :]
            self.acceptance_lengths[-1] -= count


class Update(NamedTuple):
    """Tokens that a request has just gained, or the error that has ended it."""

    request: Request
    token_ids: list[int]
    error: DFlashError | None = None
    sources: Sequence[TokenSource] = ()  # of each token
