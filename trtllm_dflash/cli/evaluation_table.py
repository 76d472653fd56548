"""The tables of `dflash-trt eval`: the engines side by side, then which linears differ."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table

from trtllm_dflash.cli.console import table_console
from trtllm_dflash.evaluate.result import EngineComparison, EngineResult, Evaluation
from trtllm_dflash.runtime.outputs import mean

_PADDING = (0, 3, 0, 0)


def print_evaluation(found: Evaluation) -> None:
    """Print the tables on stdout."""
    console = table_console()
    text = found.facts["text"]
    windows = "" if text["windows"] == 1 else f" in {text['windows']} windows"
    console.print(f"read {text['tokens']} tokens of {text['name']}{windows}\n")
    console.print(f"engine   {found.engine.directory}")
    if found.against is not None:
        console.print(f"against  {found.against.directory}")
    console.print()
    console.print(_engines(found))
    if found.comparison is not None:
        console.print()
        console.print(_differences(found.comparison))
        console.print()
        console.print(_linears(found.comparison))


def _engines(found: Evaluation) -> Table:
    results = [result for result in (found.engine, found.against) if result is not None]
    has_prompts = found.facts["prompts"] is not None
    names = ["engine", "against"][: len(results)]
    table = Table("", *names, box=None, pad_edge=False, padding=_PADDING)
    table.add_row("weights", *(result.weights for result in results))
    table.add_row("drafter", *(result.drafter or "none" for result in results))
    table.add_row("KV caches", *(result.kv_caches for result in results))
    table.add_row("perplexity", *(f"{result.perplexity:.4f}" for result in results))
    table.add_row("τ", *(_acceptance_length(result, has_prompts) for result in results))
    return table


def _acceptance_length(result: EngineResult, has_prompts: bool) -> str:
    if not result.source["draft_len"]:
        return "no drafts"
    if not has_prompts or result.acceptance is None:
        return "not measured: give --prompts"
    return f"{result.acceptance.acceptance_length:.3f} ({result.acceptance.steps} steps)"


def _differences(comparison: EngineComparison) -> Table:
    kl = (
        f"{comparison.kl_mean:.3g} nats on average, {comparison.kl_p99:.3g} at 99%,"
        f" {comparison.kl_max:.3g} at most"
    )
    table = Table.grid(padding=(0, 3))
    table.add_row("perplexity", f"{comparison.perplexity_increase:+.3%}")
    table.add_row("top-1 agreement", f"{comparison.top1:.3%} of {comparison.positions} positions")
    table.add_row("KL divergence", kl)
    if comparison.unmatched:
        count = len(comparison.unmatched)
        table.add_row(
            "not compared", f"{count} linears that only one engine has, or in other sizes"
        )
    return table


def _linears(comparison: EngineComparison) -> Table:
    titles = ("linears", "relative error", "worst", "where")
    table = Table(*titles, box=None, pad_edge=False, padding=_PADDING)
    for name, errors in group_by_last_part(comparison.linear_errors).items():
        worst = max(errors, key=lambda linear: errors[linear])
        average = mean(list(errors.values()))
        table.add_row(name, f"{average:.3g}", f"{errors[worst]:.3g}", worst)
    return table


def group_by_last_part(errors: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Group errors of linears by the last part of their names, as q_proj."""
    groups: dict[str, dict[str, float]] = {}
    for linear, error in errors.items():
        groups.setdefault(linear.rsplit(".", 1)[-1], {})[linear] = error
    return groups
