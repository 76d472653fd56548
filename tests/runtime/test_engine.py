"""The Python API on a fake session: prompts, options, streams, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtime import tiny_tokenizer as tiny
from tests.runtime.fake_session import FakeSession, fake_config
from trtllm_dflash.errors import EngineError, UsageError
from trtllm_dflash.runtime.engine import Engine
from trtllm_dflash.runtime.text.tokenizer import Tokenizer

EngineFactory = Callable[..., Engine]


@pytest.fixture
def text_engine(tmp_path: Path) -> Engine:
    config = fake_config(vocab_size=tiny.VOCAB_SIZE)
    return Engine(config, FakeSession(config), Tokenizer(tiny.write_byte_level(tmp_path)))


def tokens_of(engine: Engine, prompts: Any, **options: Any) -> list[list[int]]:
    return [answer.token_ids for answer in engine.generate(prompts, max_tokens=9, **options)]


def test_prompts_may_be_lists_arrays_and_text(text_engine: Engine) -> None:
    expected = tokens_of(text_engine, [[97, 98]])
    one_prompt = [[97, 98], (97, 98), np.array([97, 98]), [np.int32(97), np.int64(98)], "ab"]
    assert tokens_of(text_engine, one_prompt) == expected * 5
    assert all(tokens_of(text_engine, prompt) == expected for prompt in one_prompt)
    assert tokens_of(text_engine, np.array([[97, 98], [97, 98]])) == expected * 2


def test_no_prompts_no_answers(fake_engine: EngineFactory) -> None:
    assert fake_engine().generate([]) == []


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ([[1], []], "prompt 1 is empty: there is no token to continue from"),
        ([[1, 23]], r"prompt 0 has at place 1 the id 23, outside the vocabulary \(0 to 22\)"),
        ([[-1]], "prompt 0 has at place 0 the id -1, outside"),
        ([[1, True]], "prompt 0 has at place 1 True, a bool: expected an integer"),
        ([[1, 2.0]], "prompt 0 has at place 1 2.0, a float: expected an integer"),
        ([[1, "2"]], "prompt 0 has at place 1 '2', a str: expected an integer"),
        ([np.array([1.0])], "prompt 0 has at place 0 1.0, a float: expected an integer"),
        ([None], "prompt 0 is None, expected a string or a list of token ids"),
        (5, "prompts is 5, expected a list of strings or of token-id lists"),
        (
            [[1] * 41],
            (
                r"has 41 tokens, and prompts of this engine hold at most 40"
                r" \(max_input_len\).*--max-input-len"
            ),
        ),
    ],
)
def test_bad_prompts(fake_engine: EngineFactory, prompts: Any, words: str) -> None:
    engine = fake_engine()
    with pytest.raises(UsageError, match=words):
        engine.generate(prompts)
    assert engine._session.steps == []


def test_prompt_that_leaves_no_room(fake_engine: EngineFactory) -> None:
    engine = fake_engine(max_seq_len=30)
    words = (
        r"prompt 0 has 30 tokens, and sequences of this engine hold at most 30 \(max_seq_len\):"
        r" there is no room"
    )
    with pytest.raises(UsageError, match=words):
        engine.generate([[1] * 30])


def test_text_without_a_tokenizer(fake_engine: EngineFactory) -> None:
    with pytest.raises(
        UsageError, match=r"this engine has no tokenizer\.json. Give lists of token ids"
    ):
        fake_engine().generate(["text"])


def test_max_new_tokens_is_another_name(fake_engine: EngineFactory) -> None:
    engine = fake_engine()
    assert tokens_of(engine, [[1]]) == [engine.generate([[1]], max_new_tokens=9)[0].token_ids]
    with pytest.raises(UsageError, match="give either max_tokens or max_new_tokens"):
        engine.stream([[1]], max_new_tokens=9, max_tokens=9)


def test_empty_text(text_engine: Engine) -> None:
    with pytest.raises(UsageError, match="prompt 0 is empty"):
        text_engine.generate("")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"max_length": 3},
            ("unknown sampling option 'max_length'. The options are: temperature, top_p"),
        ),
        ({"temperature": -1}, "temperature is -1"),
        (
            {"draft_len": 4},
            "draft_len is 4, and this engine takes 0 to 3: a block of 4 holds 3 drafts",
        ),
        ({"seed": [1, 2]}, "seed has 2 entries for 1 prompts. Give one integer, or one each"),
    ],
)
def test_bad_options(fake_engine: EngineFactory, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        fake_engine().generate([[1]], **options)


def test_plain_engine_takes_no_drafts(fake_engine: EngineFactory) -> None:
    engine = fake_engine(block_size=1)
    assert engine.generate([[1]], max_tokens=5, stop_token_ids=[])[0].acceptance_lengths == [
        1,
        1,
        1,
        1,
    ]
    with pytest.raises(
        UsageError, match="draft_len is 1, and this engine takes 0 to 0: it has no drafter"
    ):
        engine.generate([[1]], draft_len=1)


def test_streams_join_to_generations(text_engine: Engine) -> None:
    prompts = ["ab", "cde", [9, 8, 7], "f", "ghij"]
    options: dict[str, Any] = {"max_tokens": 30, "stop_token_ids": []}
    stream = text_engine.stream(prompts, **options)
    chunks = list(stream)
    answers = stream.generations()
    assert [a.token_ids for a in answers] == [
        a.token_ids for a in text_engine.generate(prompts, **options)
    ]
    for index, answer in enumerate(answers):
        mine = [chunk for chunk in chunks if chunk.prompt_index == index]
        assert [token for chunk in mine for token in chunk.token_ids] == answer.token_ids
        assert "".join(chunk.text for chunk in mine) == answer.text
        assert [len(chunk.token_ids) for chunk in mine] == [1, *answer.acceptance_lengths]


def test_stream_of_one_prompt(text_engine: Engine) -> None:
    pieces = [text for _, _, text in text_engine.stream("ab", max_tokens=12)]
    assert "".join(pieces) == text_engine.generate("ab", max_tokens=12)[0].text


def test_stream_is_checked_when_it_is_made(fake_engine: EngineFactory) -> None:
    with pytest.raises(UsageError, match="prompt 0 is empty"):
        fake_engine().stream([[]])


def test_streams_may_not_interleave(fake_engine: EngineFactory) -> None:
    engine = fake_engine()
    first, second = engine.stream([[1]]), engine.stream([[2]])
    next(first)
    with pytest.raises(
        EngineError,
        match=r"in the middle of another stream.*Exhaust or close that stream first",
    ):
        next(second)
    first.close()
    assert engine.generate([[2]])


def test_leaving_a_with_block_closes_the_stream(fake_engine: EngineFactory) -> None:
    engine = fake_engine()
    with engine.stream([[1], [2]], stop_token_ids=[]) as stream:
        next(stream)
    assert engine.generate([[2]])
    with pytest.raises(
        EngineError,
        match=r"closed with 0 of 2 answers complete. Take those from its `finished`",
    ):
        stream.generations()


def test_failing_step_frees_the_engine(
    fake_engine: EngineFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = fake_engine()
    with monkeypatch.context() as patch:
        patch.setattr(engine._session, "decode", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.generate([[1]])
    assert engine.generate([[1]])


def test_load_checks_the_manifest(built_engine: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(built_engine, tmp_path / "copy")
    path = copy / "rank0.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        EngineError, match=r"is not what its build wrote:\n  rank0.safetensors was changed"
    ):
        Engine.load(copy)


def test_load_without_an_engine(tmp_path: Path) -> None:
    with pytest.raises(
        EngineError,
        match=r"no config\.json, so this is not an engine directory. Give the --output-dir",
    ):
        Engine.load(tmp_path)


def test_moved_engine_directory_runs(built_engine: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(built_engine, tmp_path / "moved")
    assert tokens_of(Engine.load(str(moved)), [[1, 2]]) == tokens_of(
        Engine.load(built_engine), [[1, 2]]
    )


def test_package_exports_the_engine() -> None:
    import trtllm_dflash

    assert trtllm_dflash.Engine is Engine
    assert trtllm_dflash.SamplingParams.__name__ == "SamplingParams"
    assert trtllm_dflash.Generation.__name__ == "Generation"
