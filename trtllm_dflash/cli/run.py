"""dflash-trt run: answers of an engine, on the terminal or in a file, or a conversation."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trtllm_dflash.atomic.growing_file import GrowingFile
from trtllm_dflash.cli.options import (
    PATH,
    ParsedText,
    check_sampling,
    given_options,
    options_from,
    take,
    warn_of_unused,
)
from trtllm_dflash.cli.output_files import check_outputs
from trtllm_dflash.errors import OutputError, UsageError
from trtllm_dflash.options.checks import shown, typed_text
from trtllm_dflash.options.generation import RunConfig
from trtllm_dflash.options.sampling import SamplingParams

if TYPE_CHECKING:
    from trtllm_dflash.runtime.engine import Engine
    from trtllm_dflash.runtime.outputs import Generation
    from trtllm_dflash.runtime.stream import Stream
    from trtllm_dflash.runtime.text.chat_format import ChatFormat
    from trtllm_dflash.runtime.text.prompt_files import PromptLine


_MAX_SHOWN_PROMPT = 100  # characters


@click.command(short_help="Generate answers with an engine, or talk to it.")
@click.argument("engine", type=PATH, required=False)
@click.argument("prompt", type=ParsedText(typed_text), required=False)
@options_from(RunConfig, SamplingParams)
@click.pass_context
def run(ctx: click.Context, /, engine: Path | None, prompt: str | None, **options: Any) -> None:
    """Generate answers with the ENGINE directory: to one PROMPT, or to all of --prompts.

    Without a PROMPT, a terminal becomes a conversation, and otherwise stdin is the prompt. Without
    an ENGINE, the newest one under engines/ is taken that this machine can run, else the demo's.
    """
    warn_of_unused(ctx)
    options["engine"], options["prompt"] = _engine_and_prompt(engine, prompt)
    config = take(RunConfig, options)
    is_conversation = config.prompt is None and config.source is None and _is_terminal()
    if is_conversation:
        _check_conversation(config, options)
    elif config.prompt is None and config.source is None:
        config = replace(config, prompt=_prompt_on_stdin())
    check_outputs(
        {"--output": config.output},
        inputs={
            **config.input_files,
            "--draft-len-schedule": config.draft_len_schedule,
        },
        engine=config.engine,
    )
    lines = [] if is_conversation else _prompt_lines(config)
    sampling = config.sampling_options() | options
    if is_conversation and "max_tokens" not in given_options(ctx):
        sampling.pop("max_tokens")
    check_sampling(sampling)
    with _load(config, sampling) as loaded:
        if is_conversation:
            from trtllm_dflash.cli.conversation import converse

            converse(loaded, _format_for(loaded, config), sampling, config.show_reasoning)
        else:
            _answer(loaded, lines, config, sampling)


def _engine_and_prompt(engine: Path | None, prompt: str | None) -> tuple[Path, str | None]:
    """Return the engine and the prompt; a single argument with blanks is a prompt, if no path."""
    from trtllm_dflash.cli.default_engine import find_engine

    is_text = engine is not None and prompt is None and len(str(engine).split()) > 1
    if is_text and not _exists(engine):
        return find_engine(), typed_text(str(engine))
    if engine is not None and not _exists(engine):
        raise UsageError(f"ENGINE {_no_such_engine(str(engine))}")
    return (find_engine() if engine is None else engine), prompt


def _no_such_engine(typed: str) -> str:
    from trtllm_dflash.catalog.pairs import pair_of

    text = f"{shown(typed)}: there is no such directory."
    if pair_of(typed):
        return (
            f"{text} It is a model: build its engine with `dflash-trt build --target {typed}`."
        )
    return (
        f"{text} Build it, or name another. A PROMPT of several words needs quotes, and one of a"
        " single word an ENGINE before it."
    )


def _exists(path: Path | None) -> bool:
    try:
        return path is not None and path.exists()
    except OSError:  # a name that is too long exists nowhere
        return False


def _is_terminal() -> bool:
    """Tell whether somebody types and reads here."""
    streams = (sys.stdin, sys.stdout)
    return all(stream is not None and stream.isatty() for stream in streams)


def _check_conversation(config: RunConfig, options: dict[str, Any]) -> None:
    """Raise UsageError for options that a conversation cannot follow."""
    given = {
        "--output": config.output is not None,
        "--n": options["n"] != 1,
        "--logprobs": options["logprobs"] is not None,
    }
    for name, is_given in given.items():
        if is_given:
            raise UsageError(f"{name} needs a PROMPT, --prompts FILE or --messages FILE.")


def _prompt_on_stdin() -> str:
    from trtllm_dflash.cli.prompts import read_stdin

    if sys.stdin is not None and sys.stdin.isatty():
        raise UsageError(
            "give a PROMPT, --prompts FILE or --messages FILE: stdout is no terminal, so this is no"
            " conversation."
        )
    return read_stdin()


def _prompt_lines(config: RunConfig) -> list[PromptLine]:
    from trtllm_dflash.cli.prompts import read_source
    from trtllm_dflash.runtime.text.prompt_files import PromptLine

    if config.prompt is not None:
        return [PromptLine(config.prompt)]
    return read_source(config)


def _load(config: RunConfig, sampling: dict[str, Any]) -> Engine:
    """Name the engine in the first line, and load it for the drafts that are asked for."""
    from trtllm_dflash.engine_dir.config import EngineConfig
    from trtllm_dflash.runtime.engine import Engine
    from trtllm_dflash.runtime.preprocess import step_widths

    found = EngineConfig.load(config.engine)
    click.echo(f"engine: {config.engine} ({found.gpu_arch}, {found.formats})", err=True)
    drafts: dict[str, Any] = {
        name: sampling.get(name) for name in ("draft", "draft_len", "draft_len_schedule")
    }
    widths = step_widths(SamplingParams(**drafts), found)
    return Engine.load(
        config.engine,
        num_threads=config.num_threads,
        draft_lens=None if widths.is_auto else sorted(widths.draft_lens),
        prefix_cache_mib=config.prefix_cache_mib,
    )


def _format_for(engine: Engine, config: RunConfig) -> ChatFormat:
    """Return how texts are put; without a chat template as they are, which is said."""
    from trtllm_dflash.runtime.text.chat_format import ChatFormat

    chat_format = ChatFormat.from_options(config, raw=config.raw)
    has_template = engine.tokenizer is not None and engine.tokenizer.has_chat_template
    if config.raw or has_template or config.given_chat_options or engine.tokenizer is None:
        return chat_format
    click.echo(
        "note: this model has no chat template, so it gets the text as it is (--raw)", err=True
    )
    return replace(chat_format, chat=False)


def _answer(
    engine: Engine, lines: Sequence[PromptLine], config: RunConfig, sampling: dict[str, Any]
) -> None:
    """Answer the prompts, on the terminal or into a file, and print the summary."""
    from trtllm_dflash.cli.live_answer import ids_of, print_live, text_of
    from trtllm_dflash.cli.run_summary import print_cuts, print_logprobs, print_summary

    with (
        _open_stream(engine, lines, config, sampling) as stream,
        _open_output(config.output) as file,
    ):
        count = len(lines) * sampling["n"]
        if file is not None:
            _write(lines, stream, file, config, sampling["n"])
        elif count == 1:
            show = ids_of if engine.tokenizer is None else text_of
            print_live(stream, show_reasoning=config.show_reasoning, show=show)
        else:
            _print_in_order(engine, lines, stream, config, sampling["n"])
        answers = stream.generations()
    if count == 1 and answers[0].logprobs is not None and file is None:
        print_logprobs(answers[0].logprobs, engine.tokenizer)
    print_cuts(answers, sampling["max_tokens"])
    print_summary(answers, stream.timings, width=stream.width)


def _open_stream(
    engine: Engine, lines: Sequence[PromptLine], config: RunConfig, sampling: dict[str, Any]
) -> Stream:
    from trtllm_dflash.runtime.preprocess import PromptError
    from trtllm_dflash.runtime.text.chat_format import is_token_ids

    prompts: list[Any] = [line.prompt for line in lines]
    if engine.tokenizer is not None and not all(map(is_token_ids, prompts)):
        chat_format = _format_for(engine, config)
        prompts = [_encode(engine, line, chat_format) for line in lines]
    try:
        return engine.stream(prompts, **sampling)
    except PromptError as error:
        where = lines[error.index].where
        prefix = f"{where}: " if where else ""
        raise UsageError(f"{prefix}the prompt {error.problem}") from error


def _encode(engine: Engine, line: PromptLine, chat_format: ChatFormat) -> list[int]:
    assert engine.tokenizer is not None
    try:
        return chat_format.encode(line.prompt, engine.tokenizer)
    except UsageError as error:
        if not line.where:
            raise
        raise UsageError(f"{line.where}: {error}") from error


@contextmanager
def _open_output(output: Path | None) -> Iterator[GrowingFile | None]:
    """Open the file of --output, before the first step and after all checks; None: the terminal."""
    if output is None:
        yield None
        return
    try:
        file = GrowingFile(output)
    except OSError as error:
        raise UsageError(
            f"{output}: cannot be written ({error.strerror}). Give --output another path."
        ) from error
    try:
        yield file
    finally:
        file.close()


def _print_in_order(
    engine: Engine, lines: Sequence[PromptLine], stream: Stream, config: RunConfig, n: int
) -> None:
    for index, answer in _in_order(stream):
        text = answer.text
        if engine.tokenizer is None:
            text = " ".join(map(str, answer.token_ids))
        prompt = str(lines[index // n].prompt)[:_MAX_SHOWN_PROMPT]
        click.secho(f"[{index + 1}/{len(lines) * n}] {prompt}", bold=True)
        if config.show_reasoning and answer.reasoning:
            click.secho(f"{answer.reasoning}\n", dim=True)
        click.echo(f"{text}\n")


def _write(
    lines: Sequence[PromptLine], stream: Stream, file: GrowingFile, config: RunConfig, n: int
) -> None:
    from trtllm_dflash.cli.prompts import answer_row
    from trtllm_dflash.log import progress_bar

    count = len(lines) * n
    with progress_bar() as progress:
        for index, answer in _in_order(stream):
            row = answer_row(index // n, lines[index // n], answer)
            try:
                file.write_line(json.dumps(row, ensure_ascii=False))
            except OSError as error:
                raise OutputError(
                    f"--output {config.output}: cannot be written ({error.strerror}) from answer"
                    f" {index + 1} of {count} on. Those before it are there."
                ) from error
            progress("answering", index + 1, count)


def _in_order(stream: Stream) -> Iterator[tuple[int, Generation]]:
    """Yield answers in the order of their prompts, each once all before it are complete."""
    index = 0
    for _ in stream:
        while index in stream.finished:
            yield index, stream.finished[index]
            index += 1
