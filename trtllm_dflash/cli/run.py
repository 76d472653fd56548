"""dflash-trt run: answers of an engine, on the terminal or in a file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from trtllm_dflash.cli.options import PATH, options_from, take
from trtllm_dflash.cli.output_files import check_outputs
from trtllm_dflash.errors import OutputError, UsageError
from trtllm_dflash.options.generation import RunConfig
from trtllm_dflash.options.sampling import SamplingParams

if TYPE_CHECKING:
    from trtllm_dflash.cli.prompts import PromptLine
    from trtllm_dflash.runtime.engine import Engine
    from trtllm_dflash.runtime.outputs import Generation
    from trtllm_dflash.runtime.stream import Stream


_MAX_SHOWN_PROMPT = 100  # characters


@click.command(short_help="Generate answers with an engine.")
@click.argument("engine", type=PATH)
@click.argument("prompt", required=False)
@options_from(RunConfig, SamplingParams)
def run(**options: Any) -> None:
    """Generate answers with the ENGINE directory: to one PROMPT, or to all of --prompts."""
    config = take(RunConfig, options)
    sampling = config.sampling_options() | options
    from trtllm_dflash.cli.run_summary import print_summary
    from trtllm_dflash.runtime.engine import Engine

    check_outputs(
        {"--output": config.output},
        inputs={
            "--prompts": config.prompts,
            "--draft-len-schedule": config.draft_len_schedule,
        },
        engine=config.engine,
    )
    lines = _prompt_lines(config)
    engine = Engine.load(config.engine, num_threads=config.num_threads)
    with (
        _open_stream(engine, lines, config.raw, sampling) as stream,
        _open_output(config.output) as file,
    ):
        if file is not None:
            _write(lines, stream, file)
        elif len(lines) == 1:
            _print_as_it_comes(engine, stream)
        else:
            _print_in_order(engine, lines, stream)
        answers = stream.generations()
    print_summary(answers, stream.timings, width=stream.width)


def _prompt_lines(config: RunConfig) -> list[PromptLine]:
    from trtllm_dflash.cli.prompts import PromptLine, read_prompts

    if config.prompts is not None:
        return read_prompts(config.prompts)
    assert config.prompt is not None
    return [PromptLine(config.prompt)]


def _open_stream(
    engine: Engine, lines: Sequence[PromptLine], raw: bool, sampling: dict[str, Any]
) -> Stream:
    from trtllm_dflash.runtime.preprocess import PromptError

    prompts = [_model_input(engine, line.prompt, raw) for line in lines]
    try:
        return engine.stream(prompts, **sampling)
    except PromptError as error:
        where = lines[error.index].where
        prefix = f"{where}: " if where else ""
        raise UsageError(f"{prefix}the prompt {error.problem}") from error


def _model_input(engine: Engine, prompt: str | list[int], raw: bool) -> str | list[int]:
    """Put a text into the model's chat format, unless `raw`.

    Without a tokenizer it stays a text, which the engine refuses.
    """
    if raw or not isinstance(prompt, str) or engine.tokenizer is None:
        return prompt
    return engine.tokenizer.encode_chat(prompt)


@contextmanager
def _open_output(output: Path | None) -> Iterator[IO[str] | None]:
    """Open the file of --output, before the first step and after all checks; None: the terminal."""
    if output is None:
        yield None
        return
    try:
        file = output.open("w", encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"{output}: cannot be written ({error.strerror}). Give --output another path."
        ) from error
    try:
        yield file
    finally:
        with suppress(OSError):  # each answer was flushed, and a failure then was told
            file.close()


def _print_as_it_comes(engine: Engine, stream: Stream) -> None:
    for chunk in stream:
        text = chunk.text
        if engine.tokenizer is None:
            text = "".join(f"{token} " for token in chunk.token_ids)
        click.echo(text, nl=False)
    click.echo()


def _print_in_order(engine: Engine, lines: Sequence[PromptLine], stream: Stream) -> None:
    for index, answer in _in_order(stream):
        text = answer.text
        if engine.tokenizer is None:
            text = " ".join(map(str, answer.token_ids))
        prompt = str(lines[index].prompt)[:_MAX_SHOWN_PROMPT]
        click.secho(f"[{index + 1}/{len(lines)}] {prompt}", bold=True)
        click.echo(f"{text}\n")


def _write(lines: Sequence[PromptLine], stream: Stream, file: IO[str]) -> None:
    from trtllm_dflash.cli.prompts import answer_row
    from trtllm_dflash.log import progress_bar

    with progress_bar() as progress:
        for index, answer in _in_order(stream):
            row = answer_row(index, lines[index], answer)
            try:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                file.flush()  # so that an interrupted run keeps its answers
            except OSError as error:
                raise OutputError(
                    f"--output {file.name}: cannot be written ({error.strerror}) from answer"
                    f" {index + 1} of {len(lines)} on. Those before it are there."
                ) from error
            progress("answering", index + 1, len(lines))


def _in_order(stream: Stream) -> Iterator[tuple[int, Generation]]:
    """Yield answers in the order of their prompts, each once all before it are complete."""
    index = 0
    for _ in stream:
        while index in stream.finished:
            yield index, stream.finished[index]
            index += 1
