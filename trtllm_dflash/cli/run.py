"""dflash-trt run: answers of an engine, on the terminal or in a file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from trtllm_dflash.errors import UsageError
from trtllm_dflash.options.draft_len_schedule import DraftLenSchedule
from trtllm_dflash.options.sampling import SamplingParams

if TYPE_CHECKING:
    from trtllm_dflash.cli.prompts import PromptLine
    from trtllm_dflash.runtime.engine import Engine
    from trtllm_dflash.runtime.outputs import Generation
    from trtllm_dflash.runtime.stream import Stream


@click.command
@click.argument("engine", type=click.Path(path_type=Path))
@click.argument("prompt", required=False)
@click.option(
    "--raw", is_flag=True, help="give the text to the model as it is, without its chat template"
)
@click.option(
    "--max-tokens",
    type=int,
    default=SamplingParams.max_tokens,
    help="new tokens for each prompt",
)
@click.option(
    "--temperature",
    type=float,
    default=SamplingParams.temperature,
    help="0: always the most likely token",
)
@click.option(
    "--top-p", type=float, default=SamplingParams.top_p, help="sample from this mass; 1: off"
)
@click.option(
    "--top-k", type=int, default=SamplingParams.top_k, help="sample from this many tokens; 0: off"
)
@click.option(
    "--seed",
    type=int,
    default=SamplingParams.seed,
    help="of the sampling, the same for every prompt",
)
@click.option("--no-draft", is_flag=True, help="verify no drafts: plain decoding, the same tokens")
@click.option(
    "--draft-len", type=int, help="drafts verified in a step  [default: the engine's own]"
)
@click.option(
    "--draft-len-schedule",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help=(
        'drafts by batch size, as profile advises them: JSON, {"1": 7, "4": 3}; none beyond the'
        " last"
    ),
)
@click.option("--ignore-eos", is_flag=True, help="do not stop at the model's stop tokens")
@click.option(
    "--input-file",
    type=click.Path(path_type=Path),
    help='prompts: one a line, or JSON lines with "prompt"; -: stdin',
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="write the answers there as JSON lines, not to the terminal",
)
@click.option(
    "--num-threads", type=int, help="of a CPU engine  [default: DFLASH_NUM_THREADS, else all cores]"
)
def run(
    engine: Path,
    prompt: str | None,
    *,
    raw: bool,
    input_file: Path | None,
    output: Path | None,
    num_threads: int | None,
    **options: Any,
) -> None:
    """Generate answers with the ENGINE directory: to one PROMPT, or to all of --input-file."""
    sampling = _sampling_options(**options)
    from trtllm_dflash.cli.run_summary import print_summary
    from trtllm_dflash.runtime.engine import Engine

    lines = _prompt_lines(prompt, input_file)
    loaded = Engine.load(engine, num_threads=num_threads)
    with _open_stream(loaded, lines, raw, sampling) as stream, _destination(output) as file:
        if file is not None:
            _write(lines, stream, file)
        elif len(lines) == 1:
            _print_as_it_comes(loaded, stream)
        else:
            _print_in_order(loaded, lines, stream)
        answers = stream.generations()
    print_summary(answers, stream.timings, width=stream.width)


def _prompt_lines(prompt: str | None, input_file: Path | None) -> list[PromptLine]:
    from trtllm_dflash.cli.prompts import PromptLine, read_prompts

    if prompt is not None and input_file is None:
        return [PromptLine(prompt)]
    if input_file is not None and prompt is None:
        return read_prompts(input_file)
    raise UsageError(
        "give either a PROMPT or --input-file FILE" + ("." if prompt is None else ", not both.")
    )


def _sampling_options(
    max_tokens: int, no_draft: bool, draft_len_schedule: Path | None, ignore_eos: bool, **same: Any
) -> dict[str, Any]:
    """The command's options under the names of `SamplingParams`."""
    given = {
        "--no-draft": no_draft,
        "--draft-len": same["draft_len"] is not None,
        "--draft-len-schedule": draft_len_schedule is not None,
    }
    names = [name for name, is_given in given.items() if is_given]
    if len(names) > 1:
        raise UsageError(f"give either {names[0]} or {names[1]}, not both.")
    schedule = DraftLenSchedule.load(draft_len_schedule) if draft_len_schedule is not None else None
    options = {
        "max_tokens": max_tokens,
        "draft": not no_draft,
        "draft_len_schedule": schedule,
        **same,
    }
    return options | ({"stop_token_ids": ()} if ignore_eos else {})


def _open_stream(
    engine: Engine, lines: Sequence[PromptLine], raw: bool, sampling: dict[str, Any]
) -> Stream:
    from trtllm_dflash.runtime.request import PromptError

    try:
        return engine.stream([_model_input(engine, line.prompt, raw) for line in lines], **sampling)
    except PromptError as error:
        where = lines[error.index].where
        raise UsageError(
            f"{where}: the prompt {error.problem}" if where else f"the prompt {error.problem}"
        ) from error


def _model_input(engine: Engine, prompt: str | list[int], raw: bool) -> str | list[int]:
    """Text in the model's chat format; as it is where `raw`, or without a tokenizer (the engine
    then says so).
    """
    if raw or not isinstance(prompt, str) or engine.tokenizer is None:
        return prompt
    return engine.tokenizer.encode_chat(prompt)


@contextmanager
def _destination(output: Path | None) -> Iterator[IO[str] | None]:
    """The file of --output, opened before the first step and after all checks; None is the
    terminal.
    """
    if output is None:
        yield None
        return
    try:
        file = output.open("w", encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"{output}: cannot be written ({error.strerror}). Give --output another path."
        ) from error
    with file:
        yield file


def _print_as_it_comes(engine: Engine, stream: Stream) -> None:
    for chunk in stream:
        click.echo(
            chunk.text if engine.tokenizer else "".join(f"{token} " for token in chunk.token_ids),
            nl=False,
        )
    click.echo()


def _print_in_order(engine: Engine, lines: Sequence[PromptLine], stream: Stream) -> None:
    for index, answer in _in_order(stream):
        text = (
            answer.text if engine.tokenizer else " ".join(str(token) for token in answer.token_ids)
        )
        click.secho(f"[{index + 1}/{len(lines)}] {str(lines[index].prompt)[:100]}", bold=True)
        click.echo(f"{text}\n")


def _write(lines: Sequence[PromptLine], stream: Stream, file: IO[str]) -> None:
    from trtllm_dflash.cli.prompts import answer_row
    from trtllm_dflash.log import progress_bar

    with progress_bar() as progress:
        for index, answer in _in_order(stream):
            file.write(
                json.dumps(answer_row(index, lines[index], answer), ensure_ascii=False) + "\n"
            )
            file.flush()  # so that an interrupted run keeps its answers
            progress("answering", index + 1, len(lines))


def _in_order(stream: Stream) -> Iterator[tuple[int, Generation]]:
    """The answers in the order of their prompts, each as soon as it and those before it are
    complete.
    """
    index = 0
    for _ in stream:
        while index in stream.finished:
            yield index, stream.finished[index]
            index += 1
