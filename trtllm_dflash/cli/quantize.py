"""dflash-trt quantize: from a BF16 checkpoint to one in FP8, NVFP4 or MXFP4."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from trtllm_dflash.cli.options import options_from
from trtllm_dflash.errors import UsageError
from trtllm_dflash.log import human_bytes
from trtllm_dflash.options.quantize import QuantizeConfig

if TYPE_CHECKING:
    from trtllm_dflash.quantize.report import QuantizeReport


@click.command(short_help="Quantize a target to FP8 or NVFP4.")
@options_from(QuantizeConfig)
@click.option(
    "--quantize-drafter",
    is_flag=True,
    help="quantize the drafter too, into the folder drafter of the output",
)
@click.option("--overwrite", is_flag=True, help="replace the checkpoint in --output-dir")
def quantize(quantize_drafter: bool, overwrite: bool, **settings: Any) -> None:
    """Quantize a target to FP8 or NVFP4 with NVIDIA ModelOpt, on the CPU or a GPU.

    Writes a Hugging Face checkpoint in ModelOpt's layout. The experts of gpt-oss become MXFP4, in
    the layout in which they are published. A drafter stays BF16 unless --quantize-drafter asks for
    more: its acceptance falls first.
    """
    if quantize_drafter != (settings["drafter"] is not None):
        raise UsageError(
            "--quantize-drafter needs the drafter: give --drafter DIR|NAME"
            if quantize_drafter
            else "--drafter is for --quantize-drafter; a drafter that stays as it is needs no"
            " quantization"
        )
    from trtllm_dflash.log import progress_bar
    from trtllm_dflash.quantize.pipeline import quantize as run

    config = QuantizeConfig(**settings)
    with progress_bar() as progress:
        report = run(config, overwrite=overwrite, progress=progress)
    click.echo(_summary(config, report))


def _summary(config: QuantizeConfig, report: QuantizeReport) -> str:
    drafter = str(report.directory / "drafter") if config.drafter else "DRAFTER"
    algorithm = config.weight_format.algo if config.weight_format else "KV scales"
    models = f"--target {report.directory} --drafter {drafter}"
    return (
        f"checkpoint: {report.directory} ({algorithm}, {human_bytes(report.bytes)})\n"
        f"next:       dflash-trt build {models} --output-dir ENGINE"
    )
