"""What `dflash-trt profile --estimate` prints and writes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import trtllm_dflash
from trtllm_dflash.cli.options import options_from
from trtllm_dflash.cli.output_files import check_outputs, write_file
from trtllm_dflash.errors import UsageError
from trtllm_dflash.log import table
from trtllm_dflash.options.estimate import EstimateConfig

if TYPE_CHECKING:
    from trtllm_dflash.estimate.report import EstimateReport, StepEstimate

# Not in the wheel: the comparison with published figures is documentation.
_REPOSITORY = Path(trtllm_dflash.__file__).parents[1]


@click.command
@options_from(EstimateConfig)
def estimate(**settings: Any) -> None:
    """Estimate what DFlash gives on a GPU: step times, speedups, what limits them.

    Needs neither weights nor a GPU.
    """
    run_estimate(EstimateConfig(**settings))


@click.command
def validate_estimate() -> None:
    """Compare the estimate with every published figure that says enough of how it was measured.

    Works in the repository only, where docs/estimate is.
    """
    if not (_REPOSITORY / "docs" / "estimate" / "generate.py").is_file():
        raise UsageError(
            "--validate-estimate: the published figures are not part of the installed package. Read"
            " docs/estimate/README.md in the repository, or run `make docs` there."
        )
    command = [sys.executable, "-m", "docs.estimate.generate", "--print"]
    subprocess.run(command, cwd=_REPOSITORY, check=True)


def run_estimate(config: EstimateConfig) -> None:
    """Estimate, print, and write what the configuration asks for."""
    from trtllm_dflash.estimate.run import estimate as estimated

    given = config.acceptance_length
    check_outputs(
        {"--json": config.json, "--plot": config.plot},
        inputs={"--acceptance-length": None if given is None else Path(given)},
    )
    if config.plot is not None:
        from trtllm_dflash.profile.curve_file import check_format, draw_curves

        check_format(config.plot)
    report = estimated(config)
    if config.json is not None:
        write_file("--json", config.json, json.dumps(asdict(report), indent=1) + "\n")
    if config.plot is not None:
        draw_curves(report.curves, config.plot, title=_title(report))
    print_estimate(report)
    for name, path in {"json": config.json, "plot": config.plot}.items():
        if path is not None:
            click.echo(f"{name + ':':<12}{path}")


def print_estimate(report: EstimateReport) -> None:
    """Print assumptions, steps, and advice on stdout."""
    click.echo(f"{_title(report)}: an estimate\n")
    click.echo("\n".join(f"- {line}" for line in report.assumptions))
    click.echo()
    click.echo("plain decoding > DFlash with the best number of drafts at each batch size")
    click.echo(_steps_table(report))
    click.echo()
    click.echo(_ttft_line(report))
    click.echo()
    click.echo("at equal interactivity: plain > DFlash with the best number of drafts")
    click.echo(_interactivity_table(report))
    click.echo()
    click.echo(_advice_table(report))
    for batch in report.left_out:
        click.echo(f"batch {batch} left out: its caches do not fit into memory")


def _title(report: EstimateReport) -> str:
    count = f"{report.gpus} x " if report.gpus > 1 else ""
    return f"{report.target} with {report.drafter} on {count}{report.gpu}"


def _steps_table(report: EstimateReport) -> str:
    whole = {step.batch: step for step in report.steps_of("DFlash")}
    block = f"all {next(iter(whole.values())).draft_len} drafts"
    names = [
        "batch",
        "drafts",
        "step, ms",
        "tokens/s a user",
        "tokens/s a GPU",
        "speedup",
        block,
    ]
    eagle = {step.batch: step for step in report.steps_of("EAGLE-3")}
    if eagle:
        names.append("EAGLE-3")
    rows: list[Sequence[str]] = [[*names, "waits for"]]
    for plain, best in zip(report.steps_of("plain"), report.best_steps, strict=True):
        cells = [*_step_cells(plain, best), f"{whole[plain.batch].speedup:.2f}x"]
        if eagle:
            cells.append(f"{eagle[plain.batch].speedup:.2f}x")
        rows.append([*cells, f"{plain.limited_by} > {best.limited_by}"])
    return table(rows, indent="")


def _step_cells(plain: StepEstimate, best: StepEstimate) -> list[str]:
    users = [step.tokens_per_second_per_user for step in (plain, best)]
    gpus = [step.tokens_per_second_per_gpu for step in (plain, best)]
    return [
        f"{plain.batch}",
        f"{best.draft_len}",
        f"{plain.step_seconds * 1e3:.2f} > {best.step_seconds * 1e3:.2f}",
        f"{users[0]:.0f} > {users[1]:.0f}",
        f"{gpus[0]:.0f} > {gpus[1]:.0f}",
        f"{best.speedup:.2f}x",
    ]


def _ttft_line(report: EstimateReport) -> str:
    times = [f"{way} {_duration(seconds)}" for way, seconds in report.ttft_seconds.items()]
    return (
        f"time to first token: {', '.join(times)}, for a prompt of {report.context} tokens alone,"
        f" in chunks of {report.prompt_chunk}"
    )


def _duration(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _interactivity_table(report: EstimateReport) -> str:
    rows: list[Sequence[str]] = [("tokens/s a user", "batch", "tokens/s a GPU", "ratio")]
    for row in report.equal_interactivity:
        ratio = "no bound from here: plain is at batch 1"
        if row.ratio is not None:
            ratio = f"{row.ratio:.2f}x"
        cells = (
            f"{row.tokens_per_second_per_user:.0f}",
            f"{row.plain_batch} > {row.dflash_batch:.0f}",
            f"{row.plain_per_gpu:.0f} > {row.dflash_per_gpu:.0f}",
            ratio,
        )
        rows.append(cells)
    return table(rows, indent="")


def _advice_table(report: EstimateReport) -> str:
    advice = report.advice
    lengths = [f"{row.batch}: {row.draft_len} ({row.speedup:.2f}x)" for row in advice.batches]
    sizes = [f"{batch}: {size}" for batch, size in report.best_block_sizes.items()]
    stops = "never, up to the largest"
    if advice.stops_paying_at is not None:
        stops = f"from {advice.stops_paying_at} on"
    rows = [
        ("drafts to verify", ", ".join(lengths)),
        ("block to build with", ", ".join(sizes)),
        ("DFlash stops paying", f"{stops} of these batch sizes, with these drafts"),
        ("draft_len_schedule", json.dumps(advice.draft_len_schedule)),
    ]
    return table(rows, indent="")
