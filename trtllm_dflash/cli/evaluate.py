"""dflash-trt eval: what an engine's numbers are worth, and what it changes against another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trtllm_dflash.cli.options import options_from
from trtllm_dflash.cli.output_files import check_file, write_file
from trtllm_dflash.errors import UsageError
from trtllm_dflash.options.evaluate import EvaluateConfig

if TYPE_CHECKING:
    from trtllm_dflash.cli.prompts import PromptLine
    from trtllm_dflash.evaluate.result import Evaluation


@click.command
@click.argument("engine", type=click.Path(path_type=Path))
@options_from(EvaluateConfig)
@click.option(
    "--prompts",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help='measure τ on these prompts: one a line, or JSON lines with "prompt"; -: stdin',
)
@click.option(
    "--raw", is_flag=True, help="give prompts to the model as they are, without its chat template"
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="write all numbers there as JSON",
)
@click.pass_context
def eval(
    ctx: click.Context,
    /,
    engine: Path,
    prompts: Path | None,
    raw: bool,
    json_file: Path | None,
    **settings: Any,
) -> None:
    """Measure the perplexity of ENGINE, a CPU engine, on a text, and τ on prompts; --against
    another, what it changes.

    A quantized CPU engine computes with the same quantized numbers as one for a GPU. Exit code 1 if
    a limit is missed.
    """
    if raw and prompts is None:
        raise UsageError("--raw is for --prompts FILE; a text is always read as it is")
    config = EvaluateConfig(engine, **settings)
    check_file("--json", json_file)
    from trtllm_dflash.cli.evaluation_table import print_evaluation
    from trtllm_dflash.cli.prompts import read_prompts

    found = _evaluate(config, prompts, read_prompts(prompts) if prompts else [], raw=raw)
    try:  # neither a file nor a terminal that fails takes along what was measured
        if json_file is not None:
            write_file(
                "--json",
                json_file,
                json.dumps(found.to_json(), indent=2, ensure_ascii=False) + "\n",
            )
    finally:
        print_evaluation(found)
    for failure in found.failures:
        click.echo(f"failed: {failure}", err=True)
    if found.failures:
        ctx.exit(1)


def _evaluate(
    config: EvaluateConfig, path: Path | None, lines: list[PromptLine], *, raw: bool
) -> Evaluation:
    from trtllm_dflash.evaluate.evaluator import EvalPrompts, evaluate
    from trtllm_dflash.log import progress_bar
    from trtllm_dflash.runtime.preprocess import PromptError

    questions = (
        EvalPrompts(str(path), tuple(line.prompt for line in lines), chat=not raw) if path else None
    )
    try:
        with progress_bar() as progress:
            return evaluate(config, questions, progress=progress)
    except PromptError as error:
        raise UsageError(f"{lines[error.index].where}: the prompt {error.problem}") from error
