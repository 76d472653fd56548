"""Text in, text out, and text as tokens come."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.patience import PATIENCE
from tests.runtime import tiny_tokenizer as tiny
from tests.tokenizing.process_table import pid_of
from trtllm_dflash.errors import EngineError, UsageError
from trtllm_dflash.runtime.text.detokenizer import IncrementalDetokenizer
from trtllm_dflash.runtime.text.tokenizer import Tokenizer

TEXT = "héllo wörld, €5 🙂 – ok\n\ttabs 日本語 👩‍👩‍👧"


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(tiny.write_byte_level(tmp_path_factory.mktemp("byte_level")))


@pytest.fixture(scope="module")
def byte_fallback(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(tiny.write_byte_fallback(tmp_path_factory.mktemp("byte_fallback")))


def test_text_survives(byte_level: Tokenizer) -> None:
    ids = byte_level.encode(TEXT)
    assert ids == list(TEXT.encode())
    assert byte_level.decode([tiny.BOS, *ids, tiny.EOS]) == TEXT


def test_chat_is_the_models_own_format(byte_level: Tokenizer) -> None:
    expected = [tiny.BOS, tiny.USER, *b"hi", tiny.ASSISTANT]
    assert byte_level.encode_chat("hi") == expected
    assert byte_level.encode_chat([{"role": "user", "content": "hi"}]) == expected


def test_a_model_without_chat_template(tmp_path: Path) -> None:
    tokenizer = Tokenizer(tiny.write_byte_level(tmp_path, chat=False))
    with pytest.raises(
        UsageError, match=r"this model has no chat template. Give the text as it is: run --raw"
    ):
        tokenizer.encode_chat("hi")


def test_a_template_that_refuses(byte_level: Tokenizer) -> None:
    with pytest.raises(
        UsageError, match="chat template refuses these messages: no system messages"
    ):
        byte_level.encode_chat([{"role": "system", "content": "be brief"}])


def test_text_with_half_a_surrogate_pair(byte_level: Tokenizer) -> None:
    with pytest.raises(
        UsageError, match="the text has half a surrogate pair at place 1, which is no character"
    ):
        byte_level.encode("a\ud800")


def test_no_tokenizer_files(tmp_path: Path) -> None:
    assert Tokenizer.find(tmp_path) is None


def test_damaged_tokenizer_files(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    tokenizer = Tokenizer.find(tmp_path)
    assert tokenizer is not None
    with pytest.raises(
        EngineError, match=r"the tokenizer files cannot be read .* or give prompts as token ids"
    ):
        tokenizer.encode("hi")


@settings(max_examples=60)
@given(
    text=st.text(max_size=20),
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=20),
    seed=st.integers(0, 9),
)
def test_streamed_text_is_the_text(
    byte_level: Tokenizer, byte_fallback: Tokenizer, text: str, sizes: list[int], seed: int
) -> None:
    specials = [tiny.EOS] if seed > 5 else []
    streams = {
        byte_level: [*specials, *byte_level.encode(text), *specials],
        byte_fallback: [
            tiny.VOCAB_SIZE + 1,
            *specials,
            *text.encode(),
            tiny.VOCAB_SIZE + 2,
            tiny.VOCAB_SIZE + 2,
        ],
    }
    for tokenizer, ids in streams.items():
        stream, pieces, place = IncrementalDetokenizer(tokenizer.decode), [], 0
        for index in range(len(ids)):
            size = sizes[index % len(sizes)]
            pieces.append(stream.push(ids[place : place + size]))
            place += size
        assert all("\ufffd" not in piece for piece in pieces if "\ufffd" not in text)
        assert "".join(pieces) + stream.finish() == tokenizer.decode(ids)


def test_half_a_character_waits(byte_level: Tokenizer) -> None:
    stream = IncrementalDetokenizer(byte_level.decode)
    assert [stream.push([byte]) for byte in "a€b".encode()] == ["a", "", "", "€", "b"]
    assert stream.push("é".encode()[:1]) == ""
    assert stream.finish() == "\ufffd"


def test_whole_characters_before_a_half_one_are_shown(byte_level: Tokenizer) -> None:
    stream = IncrementalDetokenizer(byte_level.decode)
    assert stream.push("ab€".encode()[:-1]) == "ab"
    assert stream.push("€c".encode()[-2:]) == "€c"


def test_spaces_between_words_survive_specials(byte_fallback: Tokenizer) -> None:
    hello, world = tiny.VOCAB_SIZE + 1, tiny.VOCAB_SIZE + 2
    stream = IncrementalDetokenizer(byte_fallback.decode)
    assert [stream.push([token]) for token in (hello, tiny.EOS, world, world)] == [
        "hello",
        "",
        " world",
        " world",
    ]


SHOW_NOTHING = [
    tiny.EOS,
    tiny.VOCAB_SIZE,
]  # a special token, and a space, which is cut off at the beginning of a text


@settings(max_examples=60)
@given(
    ids=st.lists(
        st.sampled_from([*SHOW_NOTHING, tiny.VOCAB_SIZE + 1, tiny.VOCAB_SIZE + 2, *b"ab"]),
        max_size=12,
    )
)
def test_tokens_that_show_nothing_change_nothing(
    byte_fallback: Tokenizer, ids: list[int]
) -> None:
    stream = IncrementalDetokenizer(byte_fallback.decode)
    pieces = [stream.push([token]) for token in ids]
    assert "".join(pieces) + stream.finish() == byte_fallback.decode(ids)


@pytest.mark.parametrize("token", SHOW_NOTHING)
def test_window_stays_short(byte_fallback: Tokenizer, token: int) -> None:
    most = 0

    def decode(token_ids: Sequence[int]) -> str:
        nonlocal most
        most = max(most, len(token_ids))
        return byte_fallback.decode(token_ids)

    stream = IncrementalDetokenizer(decode)
    for token_id in [tiny.VOCAB_SIZE + 1, *[token] * 80]:
        stream.push([token_id])
    assert most <= 32


def test_decoding_does_not_wait_for_a_long_prompt(byte_level: Tokenizer) -> None:
    byte_level.encode("a")
    encoder = pid_of(byte_level, "encode")
    os.kill(encoder, signal.SIGSTOP)
    with ThreadPoolExecutor(2) as pool:
        encoding = pool.submit(byte_level.encode, "a long prompt")
        try:
            assert pool.submit(byte_level.decode, [65]).result(timeout=PATIENCE) == "A"
            assert not encoding.done()
        finally:
            os.kill(encoder, signal.SIGCONT)
        assert encoding.result(timeout=PATIENCE) == list(b"a long prompt")


def test_tokenizing_does_not_import_torch(byte_level: Tokenizer) -> None:
    byte_level.encode("a")
    encoder = pid_of(byte_level, "encode")
    maps = Path(f"/proc/{encoder}/maps").read_text("utf-8")
    assert "tokenizers" in maps
    assert "libtorch" not in maps


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("12", "token_ids is '12', expected a list of token ids"),
        (b"ab", "token_ids is b'ab', expected a list of token ids"),
        ({1, 2}, r"token_ids is \{1, 2\}, expected a list of token ids"),
        (65, "token_ids is 65, expected a list of token ids"),
        ([1.5], "token_ids is 1.5, expected an integer of at least 0"),
        ([-1], "token_ids is -1, expected an integer of at least 0"),
    ],
)
def test_what_is_no_token_ids(byte_level: Tokenizer, given: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        byte_level.decode(given)
