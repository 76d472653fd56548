"""The tables of `dflash-trt eval`: the engines side by side, then which linears differ."""

from __future__ import annotations

from collections.abc import Mapping

import click

from trtllm_dflash.evaluate.result import EngineComparison, EngineResult, Evaluation
from trtllm_dflash.log import table
from trtllm_dflash.runtime.outputs import mean


def print_evaluation(found: Evaluation) -> None:
    """Print the tables on stdout."""
    text = found.facts["text"]
    windows = "" if text["windows"] == 1 else f" in {text['windows']} windows"
    click.echo(f"read {text['tokens']} tokens of {text['name']}{windows}\n")
    click.echo(f"engine   {found.engine.directory}")
    if found.against is not None:
        click.echo(f"against  {found.against.directory}")
    click.echo()
    click.echo(_engines(found))
    if found.comparison is not None:
        click.echo()
        click.echo(_differences(found.comparison))
        click.echo()
        click.echo(_linears(found.comparison))


def _engines(found: Evaluation) -> str:
    """Return the table of the engines side by side."""
    names = ("", "weights", "drafter", "KV caches", "perplexity", "τ")
    has_prompts = found.facts["prompts"] is not None
    columns = [names, _column("engine", found.engine, has_prompts)]
    if found.against is not None:
        columns.append(_column("against", found.against, has_prompts))
    return table(zip(*columns, strict=True), indent="")


def _column(title: str, result: EngineResult, has_prompts: bool) -> tuple[str, ...]:
    """Return the cells of one engine, with its title."""
    return (
        title,
        result.weights,
        result.drafter or "none",
        result.kv_caches,
        f"{result.perplexity:.4f}",
        _acceptance_length(result, has_prompts),
    )


def _acceptance_length(result: EngineResult, has_prompts: bool) -> str:
    """Return τ, or why there is none."""
    if not result.source["draft_len"]:
        return "no drafts"
    if not has_prompts or result.acceptance is None:
        return "not measured: give --prompts"
    return f"{result.acceptance.acceptance_length:.3f} ({result.acceptance.steps} steps)"


def _differences(comparison: EngineComparison) -> str:
    """Return the table of differences between the engines."""
    average = comparison.kl_mean
    p99 = comparison.kl_p99
    highest = comparison.kl_max
    divergence = f"{average:.3g} nats on average, {p99:.3g} at 99%, {highest:.3g} at most"
    rows = [
        ("perplexity", f"{comparison.perplexity_increase:+.3%}"),
        ("top-1 agreement", f"{comparison.top1:.3%} of {comparison.positions} positions"),
        ("KL divergence", divergence),
    ]
    if comparison.unmatched:
        count = len(comparison.unmatched)
        rows.append(
            ("not compared", f"{count} linears that only one engine has, or in other sizes")
        )
    return table(rows, indent="")


def _linears(comparison: EngineComparison) -> str:
    """Return the table of errors by the linears' names."""
    rows = [("linears", "relative error", "worst", "where")]
    for name, errors in group_by_last_part(comparison.linear_errors).items():
        average = mean(list(errors.values()))
        worst = max(errors, key=errors.__getitem__)
        highest = errors[worst]
        rows.append((name, f"{average:.3g}", f"{highest:.3g}", worst))
    return table(rows, indent="")


def group_by_last_part(errors: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Group errors of linears by the last part of their names, as q_proj."""
    groups: dict[str, dict[str, float]] = {}
    for linear, error in errors.items():
        last_part = linear.rsplit(".", 1)[-1]
        group = groups.setdefault(last_part, {})
        group[linear] = error
    return groups
