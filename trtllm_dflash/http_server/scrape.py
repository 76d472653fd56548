"""The metrics of served models for Prometheus, by the names that Triton's endpoint has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

from trtllm_dflash.errors import DFlashError
from trtllm_dflash.runtime.metric_table import (
    ACCEPTANCE_LENGTH,
    METRICS,
    READY,
    acceptance_length,
)
from trtllm_dflash.runtime.outputs import EngineStats, FinishInfo

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class ModelMetrics:
    """What one model counts; from any thread."""

    def __init__(self, families: dict[str, Any], model: str) -> None:
        self._metrics = {name: family.labels(model=model) for name, family in families.items()}
        self._totals = dict.fromkeys(("dflash_steps_total", "dflash_draft_accepted_total"), 0.0)
        self._metrics[ACCEPTANCE_LENGTH].set_function(lambda: acceptance_length(self._totals))

    def watch(self, stats: Callable[[], EngineStats], ready: Callable[[], bool]) -> None:
        """Take the gauges from an engine, at each scrape."""
        self._metrics[READY].set_function(lambda: float(ready()))
        for metric in METRICS:
            if (shows := metric.shows) is not None:
                self._metrics[metric.name].set_function(
                    lambda shows=shows: float(shows(stats()))
                )

    def add(self, finish: FinishInfo) -> None:
        """Count an answer; the engine thread alone does."""
        for metric in METRICS:
            if metric.counts is not None:
                self._metrics[metric.name].inc(metric.counts(finish))
                if metric.name in self._totals:
                    self._totals[metric.name] += metric.counts(finish)
            value = None if metric.observes is None else metric.observes(finish)
            if value is not None:
                self._metrics[metric.name].observe(value)

    def add_failure(self, error: DFlashError) -> None:
        """Count a request that was refused or failed."""
        for metric in METRICS:
            if metric.fails is not None and isinstance(error, metric.fails):
                self._metrics[metric.name].inc()


class Scrape:
    """The metrics of all models of a server."""

    def __init__(self) -> None:
        """Register the table's metrics with the label model."""
        without_created: Any = disable_created_metrics
        without_created()
        self._registry = CollectorRegistry()
        self._families: dict[str, Any] = {}
        for metric in METRICS:
            options: dict[str, Any] = {"registry": self._registry}
            make: Any = Counter if metric.is_counter else Gauge
            if metric.observes is not None:
                make = Histogram
                options["buckets"] = metric.buckets
            self._families[metric.name] = make(
                metric.name, metric.help, labelnames=("model",), **options
            )

    def of_model(self, name: str) -> ModelMetrics:
        """Return what counts for one model."""
        return ModelMetrics(self._families, name)

    def text(self) -> bytes:
        """Return all metrics as Prometheus reads them."""
        return generate_latest(self._registry)
