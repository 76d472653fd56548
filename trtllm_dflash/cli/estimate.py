"""What `dflash-trt profile --estimate` and `--validate-estimate` show and write."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from trtllm_dflash.cli.console import table_console
from trtllm_dflash.cli.options import options_from
from trtllm_dflash.cli.output_files import check_file, write_file
from trtllm_dflash.options.estimate import EstimateConfig

if TYPE_CHECKING:
    from trtllm_dflash.estimate.run import Estimate


_FIFTEEN = "gpt-oss-120b, throughput at equal interactivity, DFlash over plain decoding"
_WIDTH = 120  # of the tables, where a terminal is narrower or there is none


@click.command
@options_from(EstimateConfig)
def estimate(**settings: Any) -> None:
    """Estimate what DFlash gives on a GPU: step times, speedups, what limits them. Needs neither
    weights nor a GPU.
    """
    run_estimate(EstimateConfig(**settings))


@click.command
def validate_estimate() -> None:
    """Compare the estimate with every published figure that says enough of how it was measured."""
    run_validation()


def run_estimate(config: EstimateConfig) -> None:
    """Estimate, print, and write what the configuration asks for."""
    from trtllm_dflash.estimate.report import report
    from trtllm_dflash.estimate.run import estimate as estimated

    check_file("--json", config.json)
    check_file("--plot", config.plot)
    if config.plot is not None:
        from trtllm_dflash.estimate.plot import check_kind, draw_curves

        check_kind(config.plot)
    found = estimated(config)
    written = {"json": config.json, "plot": config.plot}
    if config.json is not None:
        write_file("--json", config.json, json.dumps(report(found).to_json(), indent=1) + "\n")
    if config.plot is not None:
        draw_curves(found.curves, config.plot, title=_title(found))
    print_estimate(found)
    for name, path in written.items():
        if path is not None:
            click.echo(f"{name + ':':<12}{path}")


def run_validation() -> None:
    """Predict every published figure, and print the table; below it NVIDIA's 15x, which is no
    speedup at one batch.
    """
    from trtllm_dflash.estimate import fifteen
    from trtllm_dflash.estimate.validate import compare, markdown

    click.echo(markdown(compare()))
    low, high = fifteen.BAND
    click.echo(
        f"\n{_FIFTEEN} (NVIDIA: {fifteen.CLAIM:.0f}x at {low:.0f} to {high:.0f} tokens/s a user)\n"
    )
    click.echo(fifteen.markdown(fifteen.comparisons()))


def print_estimate(found: Estimate) -> None:
    """Print assumptions, steps, and advice on stdout."""
    from trtllm_dflash.estimate.report import assumptions

    console = table_console()
    console.width = max(console.width, _WIDTH)
    console.print(f"{_title(found)}: an estimate\n")
    console.print("\n".join(f"- {line}" for line in assumptions(found)))
    console.print()
    block = found.pair.drafter.config.block_size
    console.print(f"plain decoding > DFlash with the whole block, {block - 1} drafts")
    console.print(_steps(found))
    console.print()
    console.print(
        "at equal interactivity, with the best number of drafts and the batch sizes above"
    )
    console.print(_equal(found))
    console.print()
    console.print(_advice(found))
    for batch in found.left_out:
        console.print(f"batch {batch} left out: its caches do not fit into memory")


def _title(found: Estimate) -> str:
    config = found.config
    count = f"{config.gpus} x " if config.gpus > 1 else ""
    return f"{config.target} with {found.drafter_name} on {count}{config.device.name}"


def _steps(found: Estimate) -> Table:
    names = ["batch", "step, ms", "tokens/s a user", "tokens/s a GPU", "speedup", "waits for"]
    if found.eagle:
        names.insert(5, "EAGLE-3")
    table = Table(*names, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for index, (plain, dflash) in enumerate(zip(found.plain, found.dflash, strict=True)):
        a, b = plain.point, dflash.point
        cells = [
            f"{a.batch}",
            f"{a.step_seconds * 1e3:.2f} > {b.step_seconds * 1e3:.2f}",
            f"{a.tokens_per_second_per_user:.0f} > {b.tokens_per_second_per_user:.0f}",
            f"{a.tokens_per_second_per_gpu:.0f} > {b.tokens_per_second_per_gpu:.0f}",
            f"{found.speedup(index):.2f}x",
            f"{plain.time.limited_by} > {dflash.time.limited_by}",
        ]
        if found.eagle:
            other = found.eagle[index].point.tokens_per_second_per_user
            cells.insert(5, f"{other / a.tokens_per_second_per_user:.2f}x")
        table.add_row(*cells)
    return table


def _equal(found: Estimate) -> Table:
    table = Table(
        "tokens/s a user", "tokens/s a GPU", "ratio", box=None, pad_edge=False, padding=(0, 2, 0, 0)
    )
    for user, plain, dflash in found.at_equal_interactivity():
        table.add_row(f"{user:.0f}", f"{plain:.0f} > {dflash:.0f}", f"{dflash / plain:.2f}x")
    return table


def _advice(found: Estimate) -> Table:
    advice = found.advice
    table = Table.grid(padding=(0, 3))
    lengths = ", ".join(
        f"{row.batch}: {row.draft_len} ({row.speedup:.2f}x)" for row in advice.batches
    )
    table.add_row("drafts to verify", lengths)
    sizes = ", ".join(
        f"{row.point.batch}: {size}" for row, size in zip(found.plain, found.blocks, strict=True)
    )
    table.add_row("block to build with", sizes)
    stops = (
        "never, up to the largest"
        if advice.stops_paying_at is None
        else f"from {advice.stops_paying_at} on"
    )
    table.add_row("DFlash stops paying", f"{stops} in these batch sizes")
    table.add_row("draft_len_schedule", json.dumps(advice.draft_len_schedule))
    return table
