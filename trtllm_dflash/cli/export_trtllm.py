"""dflash-trt export-trtllm: the same pair for TensorRT-LLM, on several GPUs."""

from __future__ import annotations

from typing import Any

import click

from trtllm_dflash.cli.options import options_from
from trtllm_dflash.options.trtllm_export import TrtllmExportConfig


@click.command("export-trtllm", short_help="Write configuration and commands for TensorRT-LLM.")
@options_from(TrtllmExportConfig)
@click.option("--overwrite", is_flag=True, help="replace an export that is there")
def export_trtllm(overwrite: bool, **options: Any) -> None:
    """Write what TensorRT-LLM needs to serve a pair with its own DFlash, on several GPUs.

    Reads configurations, no weights, and fetches nothing. TensorRT-LLM runs more targets than
    `build` takes.
    """
    config = TrtllmExportConfig(**options)
    from trtllm_dflash.trtllm_export.export import export
    from trtllm_dflash.trtllm_export.llm_args import OLDEST, WRITTEN_FOR
    from trtllm_dflash.trtllm_export.readme import count

    written = export(config, overwrite=overwrite)
    version = f"TensorRT-LLM {WRITTEN_FOR} ({OLDEST} or newer)"
    click.echo(f"export: {config.output_dir} ({', '.join(written.files)})")
    click.echo(f"for:    {version}, {count(config.gpus, 'GPU')}, {count(config.nodes, 'node')}")
    click.echo(f"drafter's licence: {written.drafter_licence}")
    for note in written.notes:
        click.echo(f"note:   {note}")
    click.echo(f"next:   {config.output_dir / 'README.md'}")
