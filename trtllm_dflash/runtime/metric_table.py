"""The table of the metrics of servers: what an answer, an error or an engine's state adds.

Triton's endpoint and that of `dflash-trt serve` have the same names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from trtllm_dflash.errors import BusyError, DeadlineError, DFlashError
from trtllm_dflash.runtime.outputs import EngineStats, FinishInfo


@dataclass(frozen=True)
class Metric:
    """One metric: a counter, if its name ends in _total, a histogram, if it observes, or a gauge.

    counts    what an answer adds to a counter.
    shows     the value of a gauge.
    observes  the value of an answer that a histogram takes in; None: it has none.
    fails     the errors of which each adds 1 to a counter.
    """

    name: str
    help: str
    counts: Callable[[FinishInfo], float] | None = None
    shows: Callable[[EngineStats], float] | None = None
    observes: Callable[[FinishInfo], float | None] | None = None
    fails: type[DFlashError] | None = None
    buckets: tuple[float, ...] = ()

    @property
    def is_counter(self) -> bool:
        """Return whether it only grows."""
        return self.name.endswith("_total")


# Upper bounds in seconds: three a decade, as far as answers of engines differ.
_TOKEN_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_WAIT_BUCKETS = (*_TOKEN_BUCKETS, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)


def _seconds_per_later_token(end: FinishInfo) -> float | None:
    if end.first_token_seconds is None or end.output_tokens < 2:
        return None
    return (end.seconds - end.first_token_seconds) / (end.output_tokens - 1)


REQUESTS = "dflash_requests_total"
ACCEPTANCE_LENGTH = "dflash_tokens_per_step"
READY = "dflash_ready"
METRICS = (
    Metric(REQUESTS, "requests that ended, answered or cancelled", counts=lambda _: 1),
    Metric(
        "dflash_failed_requests_total",
        "requests that were refused or failed",
        fails=DFlashError,
    ),
    Metric(
        "dflash_busy_requests_total",
        "of those, refused because the queue was full",
        fails=BusyError,
    ),
    Metric(
        "dflash_overdue_requests_total",
        "of those, ended because their timeout_seconds were over",
        fails=DeadlineError,
    ),
    Metric(
        "dflash_cancelled_requests_total",
        "requests whose client went away",
        counts=lambda end: end.finish_reason == "cancelled",
    ),
    Metric("dflash_input_tokens_total", "prompt tokens", counts=lambda end: end.input_tokens),
    Metric(
        "dflash_cached_tokens_total",
        "of those, known from earlier prompts (the prefix cache)",
        counts=lambda end: end.cached_tokens,
    ),
    Metric("dflash_output_tokens_total", "new tokens", counts=lambda end: end.output_tokens),
    Metric(
        "dflash_queue_seconds_total",
        "time in the queue, summed over requests; ÷ dflash_requests_total: the mean",
        counts=lambda end: end.queue_seconds,
    ),
    Metric(
        "dflash_first_tokens_total",
        "answers that got a first token",
        counts=lambda end: end.first_token_seconds is not None,
    ),
    Metric(
        "dflash_first_token_seconds_total",
        "time from arrival to the first token, summed; ÷ dflash_first_tokens_total: mean TTFT",
        counts=lambda end: end.first_token_seconds or 0,
    ),
    Metric(
        "dflash_later_tokens_total",
        "new tokens after each answer's first",
        counts=lambda end: max(0, end.output_tokens - 1),
    ),
    Metric(
        "dflash_later_token_seconds_total",
        "time after the first token, summed; ÷ dflash_later_tokens_total: mean time per output"
        " token",
        counts=lambda end: (
            0 if end.first_token_seconds is None else end.seconds - end.first_token_seconds
        ),
    ),
    Metric(
        "dflash_queue_time_seconds",
        "histogram of the time in the queue",
        observes=lambda end: end.queue_seconds,
        buckets=_WAIT_BUCKETS,
    ),
    Metric(
        "dflash_time_to_first_token_seconds",
        "histogram of the time from arrival to the first token (TTFT)",
        observes=lambda end: end.first_token_seconds,
        buckets=_WAIT_BUCKETS,
    ),
    Metric(
        "dflash_time_per_output_token_seconds",
        "histogram of each answer's mean time per token after the first",
        observes=_seconds_per_later_token,
        buckets=_TOKEN_BUCKETS,
    ),
    Metric(
        "dflash_steps_total",
        "generation steps, summed over the answers in them",
        counts=lambda end: end.steps,
    ),
    Metric(
        "dflash_draft_proposed_total",
        "drafts that were verified",
        counts=lambda end: end.num_draft_tokens,
    ),
    Metric(
        "dflash_draft_accepted_total",
        "drafts that were accepted",
        counts=lambda end: end.num_accepted_draft_tokens,
    ),
    Metric(
        "dflash_lookup_proposed_total",
        "those of the verified drafts that were looked up in the text, not the drafter's",
        counts=lambda end: end.num_drafts_of("lookup").verified,
    ),
    Metric(
        "dflash_lookup_accepted_total",
        "those of the accepted drafts that were looked up in the text",
        counts=lambda end: end.num_drafts_of("lookup").accepted,
    ),
    Metric(
        ACCEPTANCE_LENGTH, "τ: tokens per step and sequence, bonus included, since the start"
    ),
    Metric(READY, "1 while requests are taken and answered, else 0"),
    Metric(
        "dflash_waiting_requests", "requests without a slot", shows=lambda stats: stats.waiting
    ),
    Metric("dflash_slots", "slots", shows=lambda stats: stats.slots),
    Metric(
        "dflash_slots_in_use",
        "slots with a sequence in them",
        shows=lambda stats: stats.slots_in_use,
    ),
    Metric(
        "dflash_cache_positions",
        "positions that all slots hold",
        shows=lambda stats: stats.cache_positions,
    ),
    Metric(
        "dflash_cache_positions_in_use",
        "positions in use",
        shows=lambda stats: stats.cache_positions_in_use,
    ),
)


def acceptance_length(totals: Mapping[str, float]) -> float:
    """Return τ of all answers so far, from the totals of the counters; 0.0 without steps."""
    steps = totals["dflash_steps_total"]
    accepted = totals["dflash_draft_accepted_total"]
    return 1 + accepted / steps if steps else 0.0
