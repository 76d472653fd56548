"""The model's metrics on Triton's endpoint: one thread passes them on.

Triton's Python backend aborts the whole server if two threads touch its metrics. So every thread
adds to plain counters, and the engine thread alone passes them to Triton from time to time.
"""

from __future__ import annotations

import threading
from typing import Any

from trtllm_dflash.errors import DFlashError
from trtllm_dflash.runtime.metric_table import (
    ACCEPTANCE_LENGTH,
    METRICS,
    READY,
    Metric,
    acceptance_length,
)
from trtllm_dflash.runtime.outputs import EngineStats, FinishInfo


class Metrics:
    """The metrics of one model instance."""

    def __init__(self, triton: Any, labels: dict[str, str]) -> None:
        """Register all metrics; `triton` is the Python backend's module of utilities."""
        self._lock = threading.Lock()
        self._totals = {metric.name: 0.0 for metric in METRICS if metric.is_counter}
        self._published_totals = dict(self._totals)
        self._published_gauges: dict[str, float] = {}
        self._observed: list[tuple[str, float]] = []
        self._families: list[Any] = []  # Triton drops a family that nothing refers to
        self._metrics: dict[str, Any] = {}
        for metric in METRICS:
            family = _register(triton, metric)
            if family is not None:
                options = {"buckets": list(metric.buckets)} if metric.buckets else {}
                self._families.append(family)
                self._metrics[metric.name] = family.Metric(labels=labels, **options)

    def add(self, finish: FinishInfo) -> None:
        """Count an answer; from any thread."""
        with self._lock:
            for metric in METRICS:
                if metric.counts is not None:
                    self._totals[metric.name] += metric.counts(finish)
                value = None if metric.observes is None else metric.observes(finish)
                if value is not None:
                    self._observed.append((metric.name, value))

    def add_failure(self, error: DFlashError) -> None:
        """Count a request that was refused or failed; from any thread."""
        with self._lock:
            for metric in METRICS:
                if metric.fails is not None and isinstance(error, metric.fails):
                    self._totals[metric.name] += 1

    def publish(self, stats: EngineStats, *, ready: bool = True) -> None:
        """Pass everything to Triton; from the engine thread alone."""
        with self._lock:
            totals = dict(self._totals)
            observed, self._observed = self._observed, []
        for name, value in observed:
            observe = getattr(self._metrics.get(name), "observe", None)
            if observe is not None:
                observe(value)
        for name, total in totals.items():
            if total > self._published_totals[name]:
                self._metrics[name].increment(total - self._published_totals[name])
        self._published_totals = totals
        gauges = _gauges(stats, totals) | {READY: float(ready)}
        for name, value in gauges.items():
            if self._published_gauges.get(name) != value:
                self._metrics[name].set(value)
        self._published_gauges = gauges


def _register(triton: Any, metric: Metric) -> Any | None:
    """Return the metric's family; None for a histogram where the server has none."""
    family = triton.MetricFamily
    role = family.COUNTER if metric.is_counter else family.GAUGE
    if metric.observes is not None:
        if not hasattr(family, "HISTOGRAM"):
            return None
        role = family.HISTOGRAM
    return family(name=metric.name, description=metric.help, kind=role)


def _gauges(stats: EngineStats, totals: dict[str, float]) -> dict[str, float]:
    values = {}
    for metric in METRICS:
        if metric.shows is not None:
            values[metric.name] = float(metric.shows(stats))
    values[ACCEPTANCE_LENGTH] = acceptance_length(totals)
    return values
