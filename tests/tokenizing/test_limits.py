"""Foreign code that hangs, eats memory or aborts ends its own call, in words, and no other."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.runtime import tiny_tokenizer as tiny
from tests.tokenizing.process_table import pid_of
from tests.tokenizing.tokenizer_files import write
from trtllm_dflash.errors import DFlashError, EngineError, UsageError
from trtllm_dflash.runtime.text import tokenizer as module
from trtllm_dflash.runtime.text.tokenizer import ChatError, Tokenizer
from trtllm_dflash.tokenizing import fork_server, limits
from trtllm_dflash.tokenizing.limits import CallLimits

LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
DOUBLES = [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"} for _ in range(40)]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every call a fraction of a second."""
    for name in ("rendering_limits", "encoding_limits", "decoding_limits"):
        monkeypatch.setattr(module, name, lambda _: CallLimits(seconds=0.3))


def test_a_template_without_end(impatient: None, tmp_path: Path) -> None:
    tokenizer = Tokenizer(write(tmp_path, template=LOOPS))
    with pytest.raises(ChatError, match=r"chat template .* takes more than 0.3 s of processor"):
        tokenizer.encode_chat("hi")
    assert tokenizer.decode(tokenizer.encode("ab")) == "ab"


def test_a_template_that_counts_too_far(impatient: None, tmp_path: Path) -> None:
    """A power is computed in one step of the interpreter, which no Python thread could end."""
    tokenizer = Tokenizer(write(tmp_path, template="{{ 7 ** (10 ** 9) }}"))
    with pytest.raises(ChatError, match=r"takes more than 0.3 s of processor time"):
        tokenizer.encode_chat("hi")


def test_a_template_that_takes_all_memory(tmp_path: Path) -> None:
    tokenizer = Tokenizer(write(tmp_path, template="{{ 'a' * 9000000000 }}"))
    with pytest.raises(
        ChatError, match="chat template cannot be used: it needs too much memory"
    ):
        tokenizer.encode_chat("hi")
    assert tokenizer.encode("a") == [97]


def test_a_template_that_writes_more_than_a_prompt_holds(tmp_path: Path) -> None:
    write(tmp_path, template="{{ 'a' * 5000 }}")
    tokenizer = Tokenizer(tmp_path, max_input_len=100)
    longest = 100 * tokenizer.longest_token
    with pytest.raises(
        ChatError,
        match=f"makes a text of 5000 characters .*, and a prompt has at most {longest}",
    ):
        tokenizer.encode_chat("hi")


def test_a_normalizer_that_doubles(impatient: None, tmp_path: Path) -> None:
    tokenizer = Tokenizer(
        write(tmp_path, normalizer={"type": "Sequence", "normalizers": DOUBLES})
    )
    with pytest.raises(EngineError, match=r"the tokenizer cannot encode this: "):
        tokenizer.encode("a")
    assert tokenizer.encode("b") == [98]


def test_a_pattern_that_never_ends(impatient: None, tmp_path: Path) -> None:
    split = {"type": "Split", "pattern": {"Regex": "(x+x+)+y"}, "behavior": "Isolated"}
    tokenizer = Tokenizer(write(tmp_path, pre_tokenizer=split | {"invert": False}))
    with pytest.raises(EngineError, match=r"the tokenizer cannot encode this: "):
        tokenizer.encode("x" * 5000)


def test_a_library_that_panics(tmp_path: Path) -> None:
    tokenizer = Tokenizer(write(tmp_path, pre_tokenizer={"type": "FixedLength", "length": 0}))
    with pytest.raises(EngineError, match="cannot encode this: PanicException: "):
        tokenizer.encode("ab")
    assert tokenizer.decode(list(b"ab")) == "ab"


def test_a_library_that_aborts(tmp_path: Path) -> None:
    """What a process says last is told."""
    tokenizer = Tokenizer(tiny.write_byte_level(tmp_path))
    tokenizer.decode([97])
    os.kill(pid_of(tokenizer, "decode"), signal.SIGABRT)
    with pytest.raises(EngineError, match=r"cannot decode this: its native library gave up"):
        tokenizer.decode([97])
    assert tokenizer.decode([97]) == "a"


def test_a_process_that_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer(tiny.write_byte_level(tmp_path))
    tokenizer.decode([97])
    os.kill(pid_of(tokenizer, "decode"), signal.SIGSTOP)
    with monkeypatch.context() as patch:
        patch.setattr(CallLimits, "wall_seconds", 0.1)
        with pytest.raises(EngineError, match="has no usable answer after 0 s"):
            tokenizer.decode([97])
    assert tokenizer.decode([97]) == "a"


def test_an_answer_beyond_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer(tiny.write_byte_level(tmp_path))
    tokenizer.encode("a")
    monkeypatch.setattr("trtllm_dflash.tokenizing.processes.MAX_MESSAGE_BYTES", 500)
    with pytest.raises(EngineError, match="has no usable answer"):
        tokenizer.encode("a" * 400)
    assert tokenizer.encode("a") == [97]


def test_a_text_beyond_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer(tiny.write_byte_level(tmp_path))
    monkeypatch.setattr(module, "MAX_CHARACTERS", 100)
    with pytest.raises(UsageError, match="has 101 characters, and at most 100 are encoded"):
        tokenizer.encode("a" * 101)


def test_a_pipe_among_the_files_is_not_read(tmp_path: Path) -> None:
    tiny.write_byte_level(tmp_path)
    os.mkfifo(tmp_path / "special_tokens_map.json")
    with pytest.raises(EngineError, match=r"special_tokens_map.json is neither a file nor"):
        Tokenizer(tmp_path).encode("a")


def test_errors_of_foreign_code_are_printable(tmp_path: Path) -> None:
    """A terminal would obey escape sequences."""
    write(tmp_path, template="{{ raise_exception('\\x1b[2J' + 'no ' * 9000) }}")
    with pytest.raises(ChatError) as raised:
        Tokenizer(tmp_path).encode_chat("hi")
    assert str(raised.value).isprintable()
    assert len(raised.value.problem) < 1000


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([-1], "token_ids is -1, expected an integer of at least 0"),
        ([1 << 40], "the tokenizer cannot decode this: OverflowError"),
        ([97, 1 << 70], "the tokenizer cannot decode this: OverflowError"),
    ],
)
def test_ids_that_no_tokenizer_has(tmp_path: Path, ids: list[int], words: str) -> None:
    tokenizer = Tokenizer(tiny.write_byte_level(tmp_path))
    with pytest.raises(DFlashError, match=words):
        tokenizer.decode(ids)
    assert tokenizer.decode([97]) == "a"


def test_reading_the_files_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "trtllm_dflash.tokenizing.tokenizer_process.LOADING", CallLimits(seconds=0.01)
    )
    merges: list[Any] = []
    vocabulary = {chr(0x4E00 + index): index for index in range(20000)}
    write(tmp_path, model={"type": "BPE", "vocab": vocabulary, "merges": merges})
    with pytest.raises(EngineError, match=r"files cannot be read .it takes more than 0.01 s"):
        Tokenizer(tmp_path).encode("a")


@pytest.mark.parametrize("most", [1 << 18, resource.RLIM_INFINITY])
def test_a_smaller_file_limit_stays(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raising it above what `ulimit -f` gave would fail."""
    limited = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (most, most))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limit: limited.append(limit))
    fork_server._limit_file_size()
    assert limited == [(1 << 18, 1 << 18) if most > 0 else (1 << 20, 1 << 20)]


def test_ordinary_limits_are_generous() -> None:
    """A long prompt may take twenty times as long as it does."""
    assert limits.encoding_limits(4_000_000).seconds > 80
    assert limits.rendering_limits(0).seconds <= 5
    assert limits.decoding_limits(16).seconds <= 5
