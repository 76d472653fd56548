"""The results of an evaluation, and their provenance."""

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
    """The results of one engine.

    `weights`, `drafter` and `kv_caches` are names of quantizations, or types; `source` is from
    `EvaluatedEngine.facts`.
    """

    directory: Path
    weights: str
    drafter: str | None  # None: no drafter
    kv_caches: str
    perplexity: float
    acceptance: PromptAcceptance | None  # None: no drafter, or no prompts
    source: Mapping[str, Any]


@dataclass(frozen=True)
class EngineComparison:
    """The differences of an engine from a reference on the text.

    KL(reference ‖ engine) is in nats, over all positions. `linear_errors` are
    ‖engine's output - reference's‖ / ‖reference's‖ by linear of the target. Each engine feeds its
    own inputs to a linear, so earlier errors are included; lm_head stands for the logits.
    `unmatched` linears are in one engine only, or differ in size.
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
    """All results of one evaluation."""

    engine: EngineResult
    against: EngineResult | None
    comparison: EngineComparison | None
    failures: tuple[str, ...]  # one message per violated threshold
    facts: Mapping[str, Any]  # of text, prompts, limits, command and versions

    def to_json(self) -> dict[str, Any]:
        """Return everything in plain types; numbers that are not finite become null."""
        engines = {"engine": self.engine, "against": self.against}
        plain: dict[str, Any] = _plain(
            {
                "schema": SCHEMA,
                **self.facts,
                **{
                    name: asdict(result) if result else None for name, result in engines.items()
                },
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
    """Return one message per violated threshold of `config`.

    NaN or missing values violate every threshold.
    """
    missed = _missed_differences(config, comparison) if comparison is not None else []
    found = acceptance.acceptance_length if acceptance is not None else math.nan
    limit = config.min_acceptance_length
    if limit is not None and not found >= limit:
        missed.append(f"τ is {found:.6g}, below --min-acceptance-length {limit:g}")
    return missed


def _missed_differences(config: EvaluateConfig, comparison: EngineComparison) -> list[str]:
    """Return one message per violated threshold on the comparison."""
    top1 = comparison.top1
    kl = comparison.kl_mean
    increase = comparison.perplexity_increase
    missed = []
    if config.min_top1 is not None and not top1 >= config.min_top1:
        missed.append(f"top-1 agreement is {top1:.6g}, below --min-top1 {config.min_top1:g}")
    if config.max_kl is not None and not kl <= config.max_kl:
        missed.append(f"mean KL divergence is {kl:.6g} nats, above --max-kl {config.max_kl:g}")
    limit = config.max_perplexity_increase
    if limit is not None and not increase <= limit:
        missed.append(
            f"perplexity grew by {increase:.6g} of its value, above --max-perplexity-increase"
            f" {limit:g}"
        )
    return missed


def _plain(value: Any) -> Any:
    """Return plain types; numbers that are not finite become None."""
    if isinstance(value, Mapping):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
