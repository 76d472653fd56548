"""dflash-trt eval: perplexity and acceptance of an engine, and its difference from another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trtllm_dflash.cli.options import PATH, options_from, take
from trtllm_dflash.cli.output_files import check_outputs, write_file
from trtllm_dflash.errors import UsageError
from trtllm_dflash.options.evaluate import EvaluateConfig
from trtllm_dflash.options.prompt_options import PromptOptions, ResultFile

if TYPE_CHECKING:
    from trtllm_dflash.evaluate.result import Evaluation


@click.command(short_help="Measure accuracy and acceptance, and compare two engines.")
@click.argument("engine", type=PATH)
@options_from(EvaluateConfig, PromptOptions, ResultFile)
@click.pass_context
def eval(ctx: click.Context, /, engine: Path, **options: Any) -> None:
    """Measure the perplexity of ENGINE, a CPU engine, on a text, and acceptance on prompts.

    With --against, compare it with another engine. A quantized CPU engine computes with the same
    values as one for a GPU. Exit code 1 if a limit is missed.
    """
    source = take(PromptOptions, options)
    files = take(ResultFile, options)
    without_prompts = ["--raw"] * source.raw + source.given_chat_options
    if without_prompts and source.source is None:
        click.echo(
            f"warning: {', '.join(without_prompts)}: no effect without --prompts or --messages;"
            " a text is always read as it is",
            err=True,
        )
    config = EvaluateConfig(engine, **options)
    check_outputs(
        {"--json": files.json},
        inputs={"--text": config.text, **source.input_files},
        engine=engine,
    )
    from trtllm_dflash.cli.evaluation_table import print_evaluation

    found = _evaluate(config, source)
    try:  # what was measured is shown even if the file cannot be written
        if files.json is not None:
            text = json.dumps(found.to_json(), indent=2, ensure_ascii=False)
            write_file("--json", files.json, text + "\n")
    finally:
        print_evaluation(found)
    for failure in found.failures:
        click.echo(f"failed: {failure}", err=True)
    if found.failures:
        ctx.exit(1)


def _evaluate(config: EvaluateConfig, source: PromptOptions) -> Evaluation:
    from trtllm_dflash.cli.prompts import read_source
    from trtllm_dflash.evaluate.evaluator import EvalPrompts, evaluate
    from trtllm_dflash.log import progress_bar
    from trtllm_dflash.runtime.preprocess import PromptError
    from trtllm_dflash.runtime.text.chat_format import ChatFormat

    lines = read_source(source)
    prompts = None
    if lines:
        chat_format = ChatFormat.from_options(source, raw=source.raw)
        texts = tuple(line.prompt for line in lines)
        prompts = EvalPrompts(str(source.source), texts, chat_format)
    try:
        with progress_bar() as progress:
            return evaluate(config, prompts, progress=progress)
    except PromptError as error:
        raise UsageError(f"{lines[error.index].where}: the prompt {error.problem}") from error
