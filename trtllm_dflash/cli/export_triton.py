"""dflash-trt export-triton: a model repository for Triton Inference Server."""

from __future__ import annotations

from pathlib import Path

import click

from trtllm_dflash.errors import UsageError


@click.command("export-triton")
@click.argument("engine", type=click.Path(path_type=Path))
@click.option(
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="the model repository, new or with other models",
)
@click.option("--name", default="dflash", help="the model's name")
@click.option("--instances", type=int, default=1, help="engines on each GPU, or on the processor")
@click.option(
    "--gpus", metavar="0,1,…", help="Triton's numbers of the GPUs to serve on  [default: all]"
)
@click.option(
    "--cpu", is_flag=True, help="for a server without GPUs: refuse an engine that needs one"
)
@click.option(
    "--copy", is_flag=True, help="copy the engine into the repository, do not refer to its path"
)
@click.option("--overwrite", is_flag=True, help="replace a model that an export wrote")
def export_triton(
    engine: Path,
    *,
    output: Path,
    name: str,
    instances: int,
    gpus: str | None,
    cpu: bool,
    copy: bool,
    overwrite: bool,
) -> None:
    """Write a model repository that serves the ENGINE directory with Triton Inference Server."""
    from trtllm_dflash.triton_server.export import export

    report = export(
        engine,
        output,
        name=name,
        instances=instances,
        gpus=_numbers(gpus),
        cpu=cpu,
        copy=copy,
        overwrite=overwrite,
    )
    config = report.config
    click.echo(
        f"model:  {report.model_directory} ({config.gpu_arch}, {config.max_batch_size} sequences at a"
        f" time, {instances} instance{'' if instances == 1 else 's'})\nnext:   tritonserver"
        f" --model-repository={output}   (see {report.model_directory / 'README.md'})"
    )


def _numbers(text: str | None) -> tuple[int, ...]:
    if text is None:
        return ()
    numbers = [part.strip() for part in text.split(",")]
    if not all(number.isdecimal() for number in numbers):
        raise UsageError(f"--gpus is {text!r}, expected numbers with commas between them, as 0,1.")
    return tuple(int(number) for number in numbers)
