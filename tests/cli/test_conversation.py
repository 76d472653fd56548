"""A conversation with `run`: turns, commands, what does not fit, and a real terminal."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from trtllm_dflash import Engine
from trtllm_dflash.cli import main
from trtllm_dflash.runtime.stream import Stream

Talk = Callable[..., Result]


@pytest.fixture
def talk(engines: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Talk:
    """`talk("line", KeyboardInterrupt, ..., options=(), kind="dflash")`: what is typed before
    Ctrl-D.
    """

    def invoke(*typed: Any, options: tuple[str, ...] = (), kind: str = "dflash") -> Result:
        lines = iter([*typed, EOFError])

        def read(prompt: str = "") -> str:
            line = next(lines)
            if isinstance(line, str):
                return line
            raise line

        monkeypatch.setattr("builtins.input", read)
        monkeypatch.setattr("trtllm_dflash.cli.run._is_terminal", lambda: True)
        fixed = ["run", str(engines(kind)), "--num-threads", "1", "--max-tokens", "6"]
        return CliRunner().invoke(main, [*fixed, *options])

    return invoke


def answers_in_turn(directory: Path, *texts: str, before: str = "") -> list[str]:
    """Return the answers of a conversation that puts whole turns into the template."""
    engine = Engine.load(directory, num_threads=1)
    answers = []
    for text in texts:
        before += f"[user]{text}</s>"
        (answer,) = engine.generate(f"{before}[assistant]", max_tokens=6)
        before += f"[assistant]{answer.text}</s>"
        answers.append(answer.text)
    return answers


def test_turns_are_remembered(talk: Talk, engines: Callable[..., Path]) -> None:
    result = talk("hi", "/stats", "and", "/reset", "hi")
    assert result.exit_code == 0, result.output
    first, second = answers_in_turn(engines("dflash"), "hi", "and")
    assert result.stdout == f"{first}\n{second}\n{first}\n\n"
    assert "prompt      " in result.stderr
    assert "The conversation is forgotten." in result.stderr
    assert "(cut at 6 tokens, --max-tokens)" in result.stderr


def test_system_message_stays(talk: Talk, engines: Callable[..., Path]) -> None:
    result = talk("a", "b", options=("--system", "S"))
    answers = answers_in_turn(engines("dflash"), "a", "b", before="[system]S</s>")
    assert result.stdout == "".join(f"{answer}\n" for answer in answers) + "\n"


def test_oldest_turns_are_forgotten(talk: Talk, engines: Callable[..., Path]) -> None:
    """The engine's prompts hold 60 tokens, here characters."""
    result = talk("a" * 25, "b" * 25)
    assert "(the oldest turn was forgotten: no more room)" in result.stderr
    expected = [answers_in_turn(engines("dflash"), text * 25)[0] for text in "ab"]
    assert result.stdout == "".join(f"{answer}\n" for answer in expected) + "\n"


def test_text_too_long_leaves_the_turns(talk: Talk, engines: Callable[..., Path]) -> None:
    result = talk("hi", "x" * 70, "and")
    assert result.exit_code == 0, result.output
    assert "error: " in result.stderr
    assert "at most 60" in result.stderr
    first, second = answers_in_turn(engines("dflash"), "hi", "and")
    assert result.stdout == f"{first}\n{second}\n\n"


def test_lines_commands_and_slashes(talk: Talk, engines: Callable[..., Path]) -> None:
    result = talk("", "  ", "/stats", "/nothing", "a\\", "b", "/reset", "//x", "dropped\\")
    assert result.exit_code == 0
    assert "There is no answer yet." in result.stderr
    assert "/nothing is no command." in result.stderr
    assert "/stats  speed and acceptance so far" in result.stderr
    joined, slash = (answers_in_turn(engines("dflash"), text)[0] for text in ("a b", "/x"))
    assert result.stdout.splitlines()[-2:] == [slash, ""]
    del joined  # the tiny tokenizer has no token for a line break


def test_interrupt_drops_the_line(talk: Talk, engines: Callable[..., Path]) -> None:
    result = talk("one\\", KeyboardInterrupt, "hi")
    assert result.exit_code == 0
    assert "(Ctrl-D ends)" in result.stderr
    (expected,) = answers_in_turn(engines("dflash"), "hi")
    assert result.stdout == f"{expected}\n\n"


def test_interrupt_stops_an_answer_alone(
    talk: Talk, engines: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks = Stream.__next__

    def press(stream: Stream) -> Any:
        signal_once()
        return chunks(stream)

    presses: Iterator[bool] = iter([True])

    def signal_once() -> None:
        if next(presses, False):
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Stream, "__next__", press)
    result = talk("hi", "/reset", "hi")
    assert result.exit_code == 0, result.output
    assert "(stopped)" in result.stderr
    monkeypatch.undo()
    (expected,) = answers_in_turn(engines("dflash"), "hi")
    assert result.stdout.splitlines()[1] == expected
    assert expected.startswith(result.stdout.splitlines()[0])


def test_without_a_template_turns_are_apart(talk: Talk, engines: Callable[..., Path]) -> None:
    result = talk("hi", "hi", kind="no_template")
    assert "note: this model has no chat template" in result.stderr
    first, second, _ = result.stdout.splitlines()
    assert first == second


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("no_tokenizer", (), "this engine has no tokenizer.json, so nobody can talk to it"),
        ("dflash", ("--n", "2"), "--n needs a PROMPT"),
        ("dflash", ("--logprobs", "1"), "--logprobs needs a PROMPT"),
        ("dflash", ("--output", "x"), "--output needs a PROMPT"),
    ],
)
def test_what_a_conversation_cannot(
    talk: Talk, kind: str, options: tuple[str, ...], words: str
) -> None:
    result = talk("hi", kind=kind, options=options)
    assert result.exit_code == 2
    assert words in result.stderr


@pytest.mark.slow
def test_terminal_conversation(engines: Callable[..., Path]) -> None:
    """On a real pseudo-terminal: text, Ctrl-C at the prompt, Ctrl-D."""
    command = [sys.executable, "-m", "trtllm_dflash", "run", str(engines("dflash"))]
    pid, descriptor = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background ignores it
        os.execvp(command[0], [*command, "--max-tokens", "5", "--num-threads", "1"])
    terminal = _Terminal(descriptor)
    terminal.wait_for(b"> ")
    terminal.type(b"hi\n", b"> ")
    terminal.type(b"half a line", b"half a line")  # Ctrl-C forgets what was not read before it
    terminal.type_until(b"\x03", rb"\(Ctrl-D ends\).*> ")
    terminal.type_until(b"/stats\n", b"generation  ")
    terminal.type_until(b"\x04", None)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    text = terminal.shown.decode()
    assert f"engine: {engines('dflash')} (cpu" in text
    assert answers_in_turn(engines("dflash"), "hi")[0][:4] in text


class _Terminal:
    """The user's side of a pseudo-terminal, and what it has shown."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.shown = b""

    def type(self, keys: bytes, wanted: bytes) -> None:
        """Press keys and wait for what they bring."""
        before = len(self.shown)
        os.write(self._descriptor, keys)
        assert self._shows(wanted, before, 120), self.shown

    def wait_for(self, wanted: bytes) -> None:
        """Wait for what comes without a key."""
        self.type(b"", wanted)

    def type_until(self, keys: bytes, wanted: bytes | None) -> None:
        """Press keys every two seconds until `wanted` is shown; None: until the other end closes.

        Python notices a Ctrl-C between its prompt and the wait for a key only at the next key.
        """
        before = len(self.shown)
        for _ in range(60):
            with suppress(OSError):  # the other end is closed already
                os.write(self._descriptor, keys)
            if self._shows(wanted, before, 2):
                return
        raise AssertionError(self.shown)

    def _shows(self, wanted: bytes | None, before: int, seconds: float) -> bool:
        """Read until `wanted` matches behind the first `before` bytes, or time is over."""
        until = time.monotonic() + seconds
        while wanted is None or not re.search(wanted, self.shown[before:], re.DOTALL):
            left = max(0, until - time.monotonic())
            if not select.select([self._descriptor], [], [], left)[0]:
                return False
            try:
                self.shown += os.read(self._descriptor, 4096)
            except OSError:  # its other end was closed
                return wanted is None
        return True
