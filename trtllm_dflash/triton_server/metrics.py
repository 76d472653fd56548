"""What the model says of itself on Triton's metrics endpoint: one table, one thread.

Triton's metrics must not be touched from two threads (its Python backend then aborts the whole
server). So everyone adds to plain numbers, and the engine thread alone hands them to Triton, now
and then.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trtllm_dflash.runtime.outputs import EngineStats, FinishInfo


@dataclass(frozen=True)
class Family:
    """One metric: a counter of what `of` gives for each answer that ended, or a gauge of what it
    gives for the load.
    """

    name: str
    help: str
    counts: Callable[[FinishInfo], float] | None = None
    shows: Callable[[EngineStats], float] | None = None


REQUESTS, FAILED = "dflash_requests_total", "dflash_failed_requests_total"
TAU = "dflash_tokens_per_step"
FAMILIES = (
    Family(REQUESTS, "requests that ended with an answer", counts=lambda _: 1),
    Family(FAILED, "requests that were refused or failed"),
    Family(
        "dflash_cancelled_requests_total",
        "requests whose client went away",
        counts=lambda end: end.finish_reason == "cancelled",
    ),
    Family("dflash_input_tokens_total", "prompt tokens", counts=lambda end: end.input_tokens),
    Family("dflash_output_tokens_total", "new tokens", counts=lambda end: end.output_tokens),
    Family(
        "dflash_queue_seconds_total",
        "time in the queue, summed over requests; ÷ dflash_requests_total: the mean",
        counts=lambda end: end.queue_seconds,
    ),
    Family(
        "dflash_first_tokens_total",
        "answers that got a first token",
        counts=lambda end: end.first_token_seconds is not None,
    ),
    Family(
        "dflash_first_token_seconds_total",
        "time from arrival to the first token, summed; ÷ dflash_first_tokens_total: mean TTFT",
        counts=lambda end: end.first_token_seconds or 0,
    ),
    Family(
        "dflash_later_tokens_total",
        "new tokens after each answer's first",
        counts=lambda end: max(0, end.output_tokens - 1),
    ),
    Family(
        "dflash_later_token_seconds_total",
        "time after the first token, summed; ÷ dflash_later_tokens_total: mean time per output"
        " token",
        counts=lambda end: (
            0 if end.first_token_seconds is None else end.seconds - end.first_token_seconds
        ),
    ),
    Family(
        "dflash_steps_total",
        "generation steps, summed over the answers in them",
        counts=lambda end: end.steps,
    ),
    Family(
        "dflash_draft_proposed_total",
        "drafts that were verified",
        counts=lambda end: end.num_draft_tokens,
    ),
    Family(
        "dflash_draft_accepted_total",
        "drafts that were accepted",
        counts=lambda end: end.num_accepted_draft_tokens,
    ),
    Family(TAU, "τ: tokens per step and sequence, bonus included, since the start"),
    Family("dflash_waiting_requests", "requests without a slot", shows=lambda load: load.waiting),
    Family("dflash_slots", "slots", shows=lambda load: load.slots),
    Family(
        "dflash_slots_in_use", "slots with a sequence in them", shows=lambda load: load.slots_in_use
    ),
    Family(
        "dflash_cache_positions",
        "positions that all slots hold",
        shows=lambda load: load.cache_positions,
    ),
    Family(
        "dflash_cache_positions_in_use",
        "positions in use",
        shows=lambda load: load.cache_positions_in_use,
    ),
)


class Metrics:
    """The numbers of one model instance."""

    def __init__(self, triton: Any, labels: dict[str, str]) -> None:
        """`triton` is the Python backend's module of utilities; every metric has these labels."""
        self._lock = threading.Lock()
        self._totals = dict.fromkeys(
            (family.name for family in FAMILIES if _is_counter(family)), 0.0
        )
        self._told = dict(self._totals)
        kinds = triton.MetricFamily
        self._families = [
            kinds(
                name=family.name,
                description=family.help,
                kind=kinds.COUNTER if _is_counter(family) else kinds.GAUGE,
            )
            for family in FAMILIES
        ]
        self._metrics = {
            family.name: made.Metric(labels=labels)
            for family, made in zip(FAMILIES, self._families, strict=True)
        }
        self._shown: dict[str, float] = {}

    def add(self, ended: FinishInfo) -> None:
        """Count an answer; from any thread."""
        with self._lock:
            for family in FAMILIES:
                if family.counts is not None:
                    self._totals[family.name] += family.counts(ended)

    def add_failure(self) -> None:
        """Count a request that was refused or failed; from any thread."""
        with self._lock:
            self._totals[FAILED] += 1

    def publish(self, load: EngineStats) -> None:
        """Hand everything to Triton; from the engine thread alone."""
        with self._lock:
            totals = dict(self._totals)
        for name, total in totals.items():
            if total > self._told[name]:
                self._metrics[name].increment(total - self._told[name])
        self._told = totals
        gauges = {
            family.name: float(family.shows(load))
            for family in FAMILIES
            if family.shows is not None
        }
        steps = totals["dflash_steps_total"]
        gauges[TAU] = 1 + totals["dflash_draft_accepted_total"] / steps if steps else 0.0
        for name, value in gauges.items():
            if self._shown.get(name) != value:
                self._metrics[name].set(value)
        self._shown = gauges


def _is_counter(family: Family) -> bool:
    return family.name.endswith("_total")
