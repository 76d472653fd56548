"""Where each token of an answer came from, and what it has made visible."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.runtime.callers import Caller, Gate
from tests.runtime.test_thinking import MARKS, SPECIAL, decode, ids
from trtllm_dflash.errors import DeadlineError
from trtllm_dflash.options.queueing import Queueing
from trtllm_dflash.runtime.async_engine import AsyncEngine
from trtllm_dflash.runtime.engine import Engine
from trtllm_dflash.runtime.text.answer_text import AnswerText
from trtllm_dflash.runtime.text.thinking import BEGIN, END, ThinkReader

EngineFactory = Callable[..., Engine]
LONG: dict[str, Any] = {"stop_token_ids": (), "max_tokens": 40}


@pytest.mark.parametrize("lookahead", [0, 1])
@pytest.mark.parametrize("accuracy", [0.0, 0.6, 1.0])
def test_sources_agree_with_the_counts(
    fake_engine: EngineFactory, accuracy: float, lookahead: int
) -> None:
    engine = fake_engine(accuracy=accuracy, lookahead=lookahead)
    stream = engine.stream([[3, 4], [5]], **LONG)
    chunks = list(stream)
    for index, answer in enumerate(stream.generations()):
        own = [chunk.sources for chunk in chunks if chunk.prompt_index == index]
        assert own[0] == ["target"], "the prefill verifies no drafts"
        assert [len(sources) for sources in own[1:]] == answer.acceptance_lengths
        for sources in own[1:-1]:
            assert sources[-1] == "target"
            assert set(sources[:-1]) <= {"dflash"}
        drafted = [sources.count("dflash") for sources in own]
        # The last step may be cut before the target's own token.
        cut = own[-1][-1] != "target"
        assert sum(drafted) == sum(answer.acceptance_lengths) - len(own) + 1 + cut
    if accuracy == 0.0:
        assert {source for chunk in chunks for source in chunk.sources} == {"target"}


def test_served_outputs_have_the_same_sources(fake_engine: EngineFactory) -> None:
    expected = [chunk.sources for chunk in fake_engine().stream([[3]], **LONG)]
    caller = Caller()
    with fake_engine().serve() as server:
        server.submit([3], on_event=caller, **LONG)
        end = caller.wait()
    assert [piece.sources for piece in caller.pieces] == expected
    assert list(end.acceptance_lengths) == [len(sources) for sources in expected[1:]]
    assert all(piece.token_texts is None for piece in caller.pieces)


@pytest.mark.parametrize("stop", [(), ("\x10",), ("ab",)])
def test_texts_of_tokens_join_to_the_text(text_engine: Engine, stop: tuple[str, ...]) -> None:
    options = LONG | {"stop_words": stop, "temperature": 1.0, "seed": 4}
    expected = [chunk.text for chunk in text_engine.stream("ab", **options)]
    chunks = list(text_engine.stream("ab", token_texts=True, **options))
    assert "".join(chunk.text for chunk in chunks) == "".join(expected)
    for chunk in chunks:
        assert chunk.token_texts is not None
        assert len(chunk.token_texts) == len(chunk.token_ids) == len(chunk.sources)
        assert "".join(token.text for token in chunk.token_texts) == chunk.text


@given(
    parts=st.lists(st.sampled_from(["a", " ", "\n", "é", BEGIN, END, "</s>"]), max_size=12),
    width=st.integers(1, 4),
    stop=st.sampled_from([(), ("a\n",), ("é a",)]),
)
def test_any_step_joins(parts: list[str], width: int, stop: tuple[str, ...]) -> None:
    assert MARKS is not None

    def answer(*, by_token: bool) -> tuple[str, str]:
        reader = ThinkReader(decode, SPECIAL, MARKS, [])
        text = AnswerText(reader, stop, by_token=by_token)
        tokens = ids("".join(parts))
        for begin in range(0, len(tokens), width):
            if text.stopped:
                break
            used, delta = text.push(tokens[begin : begin + width])
            is_last = begin + width >= len(tokens) or text.stopped
            total = delta.joined(text.finish()) if is_last else delta
            if by_token:
                assert text.token_texts is not None
                assert len(text.token_texts) == len(used)
                assert "".join(one.text for one in text.token_texts) == total.text
                assert "".join(one.reasoning for one in text.token_texts) == total.reasoning
        return text.text, text.reasoning

    assert answer(by_token=True) == answer(by_token=False)


def test_async_requests_have_priorities(fake_engine: EngineFactory) -> None:
    sync = fake_engine(max_batch_size=1)
    gate = Gate(sync)
    ended: list[int] = []

    async def one(engine: AsyncEngine, priority: int) -> None:
        await engine.generate([[3]], queueing=Queueing(priority=priority), **LONG)
        ended.append(priority)

    async def ask() -> None:
        async with AsyncEngine(sync) as engine:
            first = asyncio.create_task(one(engine, 0))
            await asyncio.to_thread(gate.reached.wait)
            others = [asyncio.create_task(one(engine, priority)) for priority in (2, 1)]
            while engine._server.stats.waiting < 2:
                await asyncio.sleep(0.005)
            gate.let()
            await asyncio.gather(first, *others)

    asyncio.run(ask())
    assert ended == [0, 1, 2]


def test_async_requests_have_a_limit_of_time(fake_engine: EngineFactory) -> None:
    sync = fake_engine(max_batch_size=1)
    gate = Gate(sync)

    async def ask() -> None:
        async with AsyncEngine(sync, max_waiting=1) as engine:
            patient = [
                asyncio.create_task(engine.generate([[token]], **LONG)) for token in (3, 4)
            ]
            while engine._server.stats.waiting < 1:
                await asyncio.sleep(0.005)
            # There is no room in the queue, so this one waits before it.
            with pytest.raises(DeadlineError, match="the queue was full"):
                await engine.generate([[5]], queueing=Queueing(timeout_seconds=0.05), **LONG)
            gate.let()
            await asyncio.gather(*patient)
            assert await engine.generate([[5]], queueing=Queueing(timeout_seconds=100), **LONG)

    asyncio.run(ask())
