"""What an evaluation found, and where its numbers come from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trtllm_dflash.evaluate.acceptance import PromptAcceptance
from trtllm_dflash.options.evaluate import EvaluateConfig

SCHEMA = 2


@dataclass(frozen=True)
class EngineResult:
    """One engine's own numbers; `source` says which engine it is (`EvaluatedEngine.facts`)."""

    directory: Path
    # the quantization's name, or the type; so is that of the drafter's (None: no drafter), and of
    # caches
    weights: str
    drafter: str | None
    kv_caches: str
    perplexity: float
    acceptance: PromptAcceptance | None  # None: no drafter, or no prompts
    source: Mapping[str, Any]


@dataclass(frozen=True)
class EngineComparison:
    """How an engine differs from the other on the text; KL(other ‖ engine) in nats, over all
    positions.

    `linear_errors`: ‖engine's output - other's‖ / ‖other's‖ by linear of the target, each with the
    inputs that its own engine gives it, so that what went before is in it; lm_head is the logits.
    `unmatched` linears are in one engine only, or have another size there.
    """

    positions: int
    kl_mean: float
    kl_p99: float
    kl_max: float
    top1: float
    perplexity_increase: float
    linear_errors: Mapping[str, float]
    unmatched: tuple[str, ...]


@dataclass(frozen=True)
class Evaluation:
    """All numbers of one evaluation."""

    engine: EngineResult
    against: EngineResult | None
    comparison: EngineComparison | None
    failures: tuple[str, ...]  # limits that were missed, as sentences
    facts: Mapping[str, Any]  # of text, prompts, limits, command and versions

    def to_json(self) -> dict[str, Any]:
        """Everything, in plain types; numbers that are not finite become null."""
        engines = {"engine": self.engine, "against": self.against}
        plain: dict[str, Any] = _plain(
            {
                "schema": SCHEMA,
                **self.facts,
                **{name: asdict(result) if result else None for name, result in engines.items()},
                "comparison": asdict(self.comparison) if self.comparison else None,
                "failures": self.failures,
            }
        )
        return plain


def missed_limits(
    config: EvaluateConfig,
    comparison: EngineComparison | None,
    acceptance: PromptAcceptance | None = None,
) -> list[str]:
    """A sentence for each limit of `config` that is not kept; what is no number, or was not
    measured, keeps none.
    """
    missed = _missed_differences(config, comparison) if comparison is not None else []
    tau = acceptance.acceptance_length if acceptance is not None else math.nan
    if config.min_acceptance_length is not None and not tau >= config.min_acceptance_length:
        missed.append(
            f"τ is {tau:.6g}, below --min-acceptance-length {config.min_acceptance_length:g}"
        )
    return missed


def _missed_differences(config: EvaluateConfig, comparison: EngineComparison) -> list[str]:
    top1, kl, increase = comparison.top1, comparison.kl_mean, comparison.perplexity_increase
    missed = []
    if config.min_top1 is not None and not top1 >= config.min_top1:
        missed.append(f"top-1 agreement is {top1:.6g}, below --min-top1 {config.min_top1:g}")
    if config.max_kl is not None and not kl <= config.max_kl:
        missed.append(f"mean KL divergence is {kl:.6g} nats, above --max-kl {config.max_kl:g}")
    limit = config.max_perplexity_increase
    if limit is not None and not increase <= limit:
        missed.append(
            f"perplexity grew by {increase:.6g} of what it was, above --max-perplexity-increase"
            f" {limit:g}"
        )
    return missed


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
