"""Seeds, n, ends and chats of `Engine.generate`, on a fake session."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.runtime import tiny_tokenizer as tiny
from tests.runtime.callers import Caller
from trtllm_dflash.errors import UsageError
from trtllm_dflash.options.sampling import SamplingParams
from trtllm_dflash.runtime.engine import Engine

EngineFactory = Callable[..., Engine]
NO_STOP: dict[str, Any] = {"stop_token_ids": (), "max_tokens": 20}
SAMPLED: dict[str, Any] = {"temperature": 1.0, **NO_STOP}


def test_without_a_seed_every_answer_is_another(fake_engine: EngineFactory) -> None:
    engine = fake_engine()
    answers = engine.generate([[3]] * 4, **SAMPLED) + engine.generate([[3]] * 4, **SAMPLED)
    assert len({tuple(answer.token_ids) for answer in answers}) == 8
    for answer in answers:
        (again,) = engine.generate([3], seed=answer.seed, **SAMPLED)
        assert again.token_ids == answer.token_ids, "the seed of an answer repeats it alone"


def test_one_seed_gives_each_prompt_its_own_numbers(fake_engine: EngineFactory) -> None:
    engine = fake_engine()
    answers = engine.generate([[3]] * 4, seed=5, **SAMPLED)
    assert len({tuple(answer.token_ids) for answer in answers}) == 4
    again = engine.generate([[3]] * 4, seed=5, **SAMPLED)
    assert [a.token_ids for a in again] == [a.token_ids for a in answers]
    assert answers[0].seed == 5


def test_greedy_answers_have_no_seed(fake_engine: EngineFactory) -> None:
    (answer,) = fake_engine().generate([3], seed=5, temperature=0.0)
    assert answer.seed is None


def test_n_answers_to_each_prompt(fake_engine: EngineFactory) -> None:
    engine = fake_engine()
    stream = engine.stream([[3], [4]], n=3, seed=7, **SAMPLED)
    joined: dict[tuple[int, int], list[int]] = {}
    for chunk in stream:
        key = (chunk.prompt_index, chunk.sample_index)
        joined[key] = joined.get(key, []) + chunk.token_ids
    answers = stream.generations()
    assert [answer.prompt_token_ids for answer in answers] == [[3]] * 3 + [[4]] * 3
    assert [answer.sample_index for answer in answers] == [0, 1, 2] * 2
    assert list(joined[1, 2]) == answers[5].token_ids
    assert len({tuple(answer.token_ids) for answer in answers}) == 6
    fewer = engine.generate([[3], [4]], seed=7, **SAMPLED)
    assert fewer[1].token_ids == answers[3].token_ids, "more answers do not change the first"


def test_n_answers_of_a_server(fake_engine: EngineFactory) -> None:
    engine = fake_engine()
    expected = [a.token_ids for a in engine.generate([3], n=3, seed=7, **SAMPLED)]
    callers = [Caller() for _ in range(3)]
    with engine.serve() as server:
        server.submit(
            [3],
            on_event=lambda event: callers[getattr(event, "sample_index", 0)](event),
            n=3,
            seed=7,
            **SAMPLED,
        )
        ends = [caller.wait() for caller in callers]
    assert [caller.token_ids for caller in callers] == expected
    assert ends[0].seed == 7
    assert len({end.seed for end in ends}) == 3


@pytest.mark.parametrize("min_tokens", [0, 4, 11])
def test_stop_tokens_end_no_answer_too_early(
    fake_engine: EngineFactory, min_tokens: int
) -> None:
    engine = fake_engine()
    (whole,) = engine.generate([3], **NO_STOP)
    stops = set(whole.token_ids)
    (answer,) = engine.generate(
        [3], max_tokens=20, stop_token_ids=list(stops), min_tokens=min_tokens
    )
    assert answer.token_ids == whole.token_ids[: min_tokens + 1], "and no token is another"
    assert answer.finish_reason == "stop"


def test_ignoring_the_models_own_stop_tokens(fake_engine: EngineFactory) -> None:
    engine = fake_engine(vocab_size=5)
    (whole,) = engine.generate([3], **NO_STOP)
    assert 2 in whole.token_ids[:-1], "the end of a text, as the fake has it"
    (ended,) = engine.generate([3], max_tokens=20)
    assert ended.token_ids == whole.token_ids[: whole.token_ids.index(2) + 1]
    (ignored,) = engine.generate([3], max_tokens=20, ignore_eos=True)
    assert ignored.token_ids == whole.token_ids
    other = whole.token_ids[5]
    (stopped,) = engine.generate([3], max_tokens=20, ignore_eos=True, stop_token_ids=[other])
    assert stopped.token_ids[-1] == other, "stop tokens that are given count"


def test_stop_words_end_answers_and_streams(text_engine: Engine) -> None:
    (whole,) = text_engine.generate("ab", stop_token_ids=(), max_tokens=60)
    word = whole.text[20:22]
    assert whole.text.find(word) == 20
    options: dict[str, Any] = {"stop_token_ids": (), "max_tokens": 60, "stop_words": word}
    stream = text_engine.stream(["ab", "ab"], **options)
    texts = ["", ""]
    for chunk in stream:
        texts[chunk.prompt_index] += chunk.text
    for answer, text in zip(stream.generations(), texts, strict=True):
        assert answer.text == text == whole.text[:20]
        assert answer.finish_reason == "stop"
        assert answer.token_ids == whole.token_ids[: len(answer.token_ids)]
        assert sum(answer.acceptance_lengths) + 1 == len(answer.token_ids)


def test_stop_words_need_a_tokenizer(fake_engine: EngineFactory) -> None:
    with pytest.raises(UsageError, match="stop_words is for engines with a tokenizer"):
        fake_engine().generate([[1]], stop_words=["a"])


def test_a_stop_token_that_cannot_come_is_refused(fake_engine: EngineFactory) -> None:
    with pytest.raises(
        UsageError, match=r"stop_token_ids has 23, outside the vocabulary \(0 to"
    ):
        fake_engine().generate([[1]], stop_token_ids=[23])


def test_special_tokens_are_kept_if_wanted(text_engine: Engine) -> None:
    options: dict[str, Any] = {"stop_token_ids": (), "max_tokens": 60}
    (plain,) = text_engine.generate("ab", **options)
    (kept,) = text_engine.generate("ab", skip_special_tokens=False, **options)
    specials = [token for token in plain.token_ids if token >= tiny.BOS]
    assert specials
    assert kept.token_ids == plain.token_ids
    assert kept.text.count("<") >= len(specials)
    for text in tiny.SPECIAL:
        assert text not in plain.text
        assert kept.text.count(text) == sum(
            token == tiny.BOS + tiny.SPECIAL.index(text) for token in specials
        )


def test_chat_puts_messages_into_the_models_format(text_engine: Engine) -> None:
    expected = [tiny.BOS, tiny.USER, *b"hi", tiny.ASSISTANT]
    message = {"role": "user", "content": "hi"}
    parts = {"role": "user", "content": [{"type": "text", "text": "hi"}]}
    for messages in ("hi", [message], [parts], [[message]], (message,)):
        (answer,) = text_engine.chat(messages, max_tokens=2)
        assert answer.prompt_token_ids == expected
    answers = text_engine.chat([[message], [parts]], n=2, temperature=1.0, max_tokens=2)
    assert [answer.prompt_token_ids for answer in answers] == [expected] * 4


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "messages is empty"),
        (b"hi", "messages is b'hi', expected a list of"),
        ({"role": "user"}, "messages is {'role': 'user'}, expected a list of"),
        ([{"content": "hi"}], "its role is None, expected a text"),
        ([{"role": "user", "content": 3}], "its content is a int, expected a text"),
        ([[1, 2]], r"messages\[0\] is a int, expected an object"),
    ],
)
def test_what_is_no_conversation(text_engine: Engine, messages: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        text_engine.chat(messages)


def test_chat_needs_a_tokenizer(fake_engine: EngineFactory) -> None:
    with pytest.raises(UsageError, match=r"chat needs text, and this engine has no tokenizer"):
        fake_engine().chat("hi")


def test_params_as_an_object(fake_engine: EngineFactory) -> None:
    engine = fake_engine()
    params = SamplingParams(**NO_STOP)
    assert (
        engine.generate([3], params)[0].token_ids
        == engine.generate([3], **NO_STOP)[0].token_ids
    )
    with pytest.raises(UsageError, match=r"either sampling_params or options \(max_tokens\)"):
        engine.generate([3], params, max_tokens=3)
    with pytest.raises(UsageError, match="sampling_params is 3, expected a SamplingParams"):
        engine.generate([3], 3)  # type: ignore[arg-type]
