"""dflash-trt export-triton: a model repository for Triton Inference Server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trtllm_dflash.cli.options import PATH, options_from
from trtllm_dflash.options.triton_export import TritonExportConfig

if TYPE_CHECKING:
    from trtllm_dflash.triton_server.export import ExportReport


@click.command("export-triton", short_help="Write a model repository for Triton.")
@click.argument("engine", type=PATH)
@options_from(TritonExportConfig)
@click.option("--overwrite", is_flag=True, help="replace a model that an export wrote")
def export_triton(engine: Path, overwrite: bool, **options: Any) -> None:
    """Write a model repository that serves the ENGINE directory with Triton Inference Server."""
    from trtllm_dflash.triton_server.export import export

    config = TritonExportConfig(engine, **options)
    click.echo(_summary(config, export(config, overwrite=overwrite)))


def _summary(config: TritonExportConfig, report: ExportReport) -> str:
    engine = report.engine_config
    directory = report.model_directory
    instances = _count_instances(config, on_gpus=engine.gpu_arch != "cpu")
    size = f"{engine.gpu_arch}, {engine.max_batch_size} sequences at a time, {instances}"
    command = f"tritonserver --model-repository={config.output_dir}"
    return f"model:  {directory} ({size})\nnext:   {command}   (see {directory / 'README.md'})"


def _count_instances(config: TritonExportConfig, *, on_gpus: bool) -> str:
    """Return the number of instances in words: Triton makes as many on each GPU."""
    number = config.instances
    words = f"{number} instance{'' if number == 1 else 's'}"
    if not on_gpus:
        return words
    gpus = config.gpu_indices
    if not gpus:
        return f"{words} on each GPU"
    if len(gpus) == 1:
        return f"{words} on GPU {gpus[0]}"
    return (
        f"{words} on each of the GPUs {', '.join(map(str, gpus))}: {number * len(gpus)} in all"
    )
