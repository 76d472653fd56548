"""A conversation on the terminal: history, commands, and answers that Ctrl-C stops."""

from __future__ import annotations

import io
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import click

from trtllm_dflash.cli.live_answer import print_live
from trtllm_dflash.cli.run_summary import print_cuts, print_summary
from trtllm_dflash.errors import UsageError
from trtllm_dflash.runtime.outputs import Chunk, Generation, Timings

if TYPE_CHECKING:
    from trtllm_dflash.runtime.engine import Engine
    from trtllm_dflash.runtime.stream import Stream
    from trtllm_dflash.runtime.text.chat_format import ChatFormat

_PROMPT = "> "
_HELP = """\
/reset  forget the conversation
/stats  speed and acceptance so far
/help   this list
Ctrl-C  stop the answer
Ctrl-D  end
A line that ends in \\ goes on in the next one. A text that begins with / is written with //."""
# Of a sequence: what an answer needs at least, before old turns are forgotten.
_SHARE_FOR_ANSWER = 4


def converse(
    engine: Engine, chat_format: ChatFormat, sampling: Mapping[str, Any], show_reasoning: bool
) -> None:
    """Talk until Ctrl-D; `sampling` are the options of `Engine.stream`."""
    if engine.tokenizer is None:
        raise UsageError(
            "this engine has no tokenizer.json, so nobody can talk to it. Give --prompts FILE with"
            ' token ids: {"prompt": [1, 2, 3]}.'
        )
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    with suppress(ImportError):  # editing of lines and their history, where Python has it
        import readline  # noqa: F401
    click.echo("Ctrl-D ends, /help shows more.", err=True)
    conversation = _Conversation(engine, chat_format, sampling, show_reasoning)
    for text in _typed_texts():
        conversation.take(text)


def _typed_texts() -> Iterator[str]:
    """Yield what is typed, until Ctrl-D; Ctrl-C drops the line."""
    lines: list[str] = []
    while True:
        try:
            line = input("" if lines else _PROMPT)
        except EOFError:
            click.echo()
            return
        except KeyboardInterrupt:
            click.echo("\n(Ctrl-D ends)", err=True)
            lines = []
            continue
        if line.endswith("\\"):
            lines.append(line[:-1])
            continue
        text = "\n".join([*lines, line])
        lines = []
        if text.strip():
            yield text


class _Conversation:
    """The turns so far, and what they cost."""

    def __init__(
        self,
        engine: Engine,
        chat_format: ChatFormat,
        sampling: Mapping[str, Any],
        show_reasoning: bool,
    ) -> None:
        self._engine = engine
        self._format = chat_format
        self._sampling = dict(sampling)
        self._show_reasoning = show_reasoning
        self._messages: list[dict[str, Any]] = []
        self._answers: list[Generation] = []
        self._timings = Timings()
        self._width = 1

    def take(self, text: str) -> None:
        """Follow a command, or answer."""
        if text.startswith("/") and not text.startswith("//"):
            self._command(text.strip())
            return
        before = list(self._messages)
        self._messages.append({"role": "user", "content": text.removeprefix("/")})
        try:
            self._answer()
        except UsageError as error:  # the text does not fit: what was before goes on
            click.echo(f"error: {error}", err=True)
            self._messages = before

    def _command(self, text: str) -> None:
        if text == "/reset":
            self._messages.clear()
            click.echo("The conversation is forgotten.", err=True)
        elif text == "/stats" and self._answers:
            print_summary(self._answers, self._timings, width=self._width)
        elif text == "/stats":
            click.echo("There is no answer yet.", err=True)
        else:
            if text != "/help":
                click.echo(f"{text.split()[0]} is no command.", err=True)
            click.echo(_HELP, err=True)

    def _answer(self) -> None:
        """Answer the last message, and keep the answer as a turn."""
        input_ids = self._encode()
        config = self._engine.config
        room = config.max_seq_len - len(input_ids)
        options = {"max_tokens": max(1, room), **self._sampling}
        stream = self._engine.stream([input_ids], **options)
        with stream, _interrupts() as interrupt:
            chunks = _until_pressed(stream, interrupt)
            text = print_live(chunks, show_reasoning=self._show_reasoning)
        self._width = stream.width
        self._count(stream)
        answer = stream.finished.get(0)
        if answer is None:
            click.echo("(stopped)", err=True)
        else:
            print_cuts([answer], self._sampling.get("max_tokens", room + 1))
        if not self._format.chat:
            self._messages.clear()  # without a chat format nothing tells the turns apart
            return
        self._messages.append({"role": "assistant", "content": text})

    def _encode(self) -> list[int]:
        """Return the conversation's token ids; turns that do not fit are forgotten, oldest first.

        Raises:
            UsageError: if the last message alone does not fit.
        """
        tokenizer = self._engine.tokenizer
        assert tokenizer is not None
        forgotten = 0
        while True:
            content: Any = self._messages if self._format.chat else self._messages[0]["content"]
            input_ids = self._format.encode(content, tokenizer)
            if len(input_ids) <= self._longest_prompt or len(self._messages) < 3:
                break
            del self._messages[:2]  # a question and its answer
            forgotten += 1
        if forgotten and len(input_ids) <= self._engine.config.max_input_len:
            turns = "turn was" if forgotten == 1 else f"{forgotten} turns were"
            click.echo(f"(the oldest {turns} forgotten: no more room)", err=True)
        return input_ids

    @property
    def _longest_prompt(self) -> int:
        config = self._engine.config
        wanted: int = self._sampling.get("max_tokens", config.max_seq_len)
        for_answer = min(wanted, config.max_seq_len // _SHARE_FOR_ANSWER)
        return min(config.max_input_len, config.max_seq_len - max(1, for_answer))

    def _count(self, stream: Stream) -> None:
        """Add an answer to the statistics; a stopped one counts with its time alone."""
        self._answers += stream.finished.values()
        for field in fields(Timings):
            total = getattr(self._timings, field.name) + getattr(stream.timings, field.name)
            setattr(self._timings, field.name, total)


class _Interrupt:
    """Whether Ctrl-C was pressed."""

    pressed = False


@contextmanager
def _interrupts() -> Iterator[_Interrupt]:
    """Note the first Ctrl-C instead of raising, so that a step is never left half-way."""
    interrupt = _Interrupt()

    def note(number: int, frame: Any) -> None:
        if interrupt.pressed:  # it takes too long: end the program
            signal.default_int_handler(number, frame)
        interrupt.pressed = True

    before = signal.signal(signal.SIGINT, note)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)


def _until_pressed(stream: Stream, interrupt: _Interrupt) -> Iterator[Chunk]:
    """Yield the chunks of a stream; none follows once Ctrl-C was pressed."""
    for chunk in stream:
        yield chunk
        if interrupt.pressed:
            return
