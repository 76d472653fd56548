"""dflash-trt build: from checkpoints to an engine directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trtllm_dflash.catalog.pairs import pair_of, unknown_name_message
from trtllm_dflash.checkpoint.formats import FORMATS
from trtllm_dflash.cli.default_engine import default_output_dir
from trtllm_dflash.cli.options import ConfigChoice, options_from
from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.errors import UsageError
from trtllm_dflash.log import human_bytes
from trtllm_dflash.options.build import BuildConfig
from trtllm_dflash.options.draft_len import own_drafts

if TYPE_CHECKING:
    from trtllm_dflash.builder.build_engine import BuildReport


@click.command(short_help="Build an engine from a target and its DFlash drafter.")
@options_from(BuildConfig)
@click.option(
    "--no-drafter",
    is_flag=True,
    help="a plain engine of the target alone: the baseline of every speedup",
)
@click.option("--overwrite", is_flag=True, help="replace the engine in --output-dir")
@click.option(
    "--dry-run",
    is_flag=True,
    help="show what would be built, what it needs and where it fits; fetches and writes nothing",
)
@click.option(
    "--quant",
    type=ConfigChoice(("none", *FORMATS), {}),
    default="none",
    help="with --dry-run: plan as if the target were quantized so. --kv-cache-dtype fp8 likewise",
)
def build(no_drafter: bool, overwrite: bool, dry_run: bool, quant: str, **options: Any) -> None:
    """Build an engine from a target and its DFlash drafter."""
    if quant != "none" and not dry_run:
        raise UsageError(
            f"--quant {quant} is a what-if of --dry-run; `dflash-trt quantize --quant {quant}`"
            " makes a checkpoint to build from"
        )
    if not no_drafter and options["drafter"] is None:
        options["drafter"] = _listed_drafter(options["target"])
    if no_drafter == (options["drafter"] is not None):
        raise UsageError(
            "give either --drafter DIR|NAME or --no-drafter, not both"
            if no_drafter
            else "give --drafter DIR|NAME, or pass --no-drafter to build a plain engine"
        )
    if options["output_dir"] is None:
        options["output_dir"] = default_output_dir(options["target"], options["arch"])
    config = BuildConfig(**options)
    if dry_run:
        from trtllm_dflash.builder.dry_run import preview_build
        from trtllm_dflash.log import table

        for title, rows in preview_build(config, overwrite=overwrite, quant=quant).sections():
            click.echo(f"{title}:\n{table(rows)}")
        return
    from trtllm_dflash.builder.build_engine import build_engine
    from trtllm_dflash.log import progress_bar

    with progress_bar() as progress:
        report = build_engine(config, overwrite=overwrite, progress=progress)
    click.echo(_summary(config.output_dir, report))


def _listed_drafter(target: str) -> str | None:
    """Return the published drafter of a target's name; None for a directory.

    Raises:
        UsageError: for an unknown name, with the nearest ones.
    """
    if Path(target).is_dir():
        return None
    pair = pair_of(target)
    if pair is None:
        raise UsageError(
            f"{unknown_name_message(target, 'target')}. For another model on the hub, give its"
            " --drafter DIR|NAME as well, or --no-drafter for a plain engine"
        )
    return pair.drafter.repository


def _summary(output: Path, report: BuildReport) -> str:
    sizes = report.resolved
    drafting = "plain"
    if sizes.draft_len:
        drafts = own_drafts(sizes.draft_len, auto=sizes.auto_draft_len)
        drafting = f"DFlash with {drafts} a step"
    advice = (
        f'run {output} "Why is the sky blue?"'
        if sizes.gpu_arch == "cpu" and report.takes_text
        else f"inspect {output}"
    )
    formats = EngineConfig.load(output).formats
    made = f"{sizes.gpu_arch}, {formats}, {drafting}, {human_bytes(report.bytes)}"
    return f"engine: {output} ({made})\nnext:   dflash-trt {advice}"
