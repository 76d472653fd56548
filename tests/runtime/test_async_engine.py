"""The engine for coroutines: equal answers, cancelling, refusals, room."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from tests.runtime.callers import Gate
from trtllm_dflash.errors import EngineError, UsageError
from trtllm_dflash.runtime.async_engine import AsyncEngine
from trtllm_dflash.runtime.engine import Engine

EngineFactory = Callable[..., Engine]
PROMPTS = [[3, 4, 5], [7, 8], [9]]
LONG: dict[str, Any] = {"stop_token_ids": (), "max_tokens": 80}


def test_answers_are_those_of_generate(text_engine: Engine) -> None:
    options: dict[str, Any] = {"temperature": 0.9, "seed": 5, "n": 2, "max_tokens": 20}
    expected = text_engine.generate(PROMPTS, **options, stop_token_ids=range(2, 4))

    async def ask() -> None:
        async with AsyncEngine(text_engine) as engine:
            stops = iter(range(2, 4))  # can be read once
            answers = await engine.generate(PROMPTS, **options, stop_token_ids=stops)
            assert await engine.generate([], **options) == []
        for answer, other in zip(answers, expected, strict=True):
            assert answer.token_ids == other.token_ids
            assert answer.text == other.text
            assert (answer.seed, answer.sample_index) == (other.seed, other.sample_index)
            assert answer.prompt_token_ids == other.prompt_token_ids

    asyncio.run(ask())


def test_chunks_join_to_the_answers(text_engine: Engine) -> None:
    expected = [answer.text for answer in text_engine.generate(["ab", "c"], max_tokens=20)]

    async def ask() -> None:
        async with AsyncEngine(text_engine) as engine:
            texts = ["", ""]
            async for index, _, text in engine.stream(["ab", "c"], max_tokens=20):
                texts[index] += text
            assert texts == expected

    asyncio.run(ask())


def test_more_prompts_than_the_queue_holds(fake_engine: EngineFactory) -> None:
    prompts = [[token] for token in range(20)]
    expected = [answer.token_ids for answer in fake_engine().generate(prompts, max_tokens=6)]

    async def ask() -> None:
        async with AsyncEngine(fake_engine(max_batch_size=2), max_waiting=1) as engine:
            one, other = await asyncio.gather(
                engine.generate(prompts, max_tokens=6), engine.generate(prompts, max_tokens=6)
            )
            assert [answer.token_ids for answer in one] == expected
            assert [answer.token_ids for answer in other] == expected
            with pytest.raises(UsageError, match="n is 4, and this engine has 2 slots"):
                await engine.generate([[3]], n=4, temperature=1.0)

    asyncio.run(ask())


@pytest.mark.parametrize("how", ["cancel", "drop", "close", "break"])
def test_leaving_cancels_the_request(fake_engine: EngineFactory, how: str) -> None:
    sync = fake_engine(max_batch_size=1, accuracy=0.0)
    gate = Gate(sync)

    async def leave(engine: AsyncEngine) -> None:
        if how == "break":
            async for _ in engine.stream([[3]], **LONG):
                break
            return
        stream = engine.stream([[3]], **LONG)
        await anext(stream)
        if how == "cancel":
            task = asyncio.create_task(stream.generations())
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        elif how == "close":
            await stream.aclose()
            with pytest.raises(EngineError, match="closed before its answers were complete"):
                await stream.generations()

    async def ask() -> None:
        async with AsyncEngine(sync) as engine:
            gate.let(1)
            await leave(engine)
            gate.let()
            (after,) = await engine.generate([[5]], max_tokens=3)
            assert len(after.token_ids) == 3
            steps = len(sync._session.steps)
            assert steps < 80, "the request that was left did not run to its end"

    asyncio.run(ask())


def test_a_bad_prompt_ends_the_others(fake_engine: EngineFactory) -> None:
    async def ask() -> None:
        async with AsyncEngine(fake_engine()) as engine:
            with pytest.raises(UsageError, match="the prompt is empty"):
                await engine.generate([[3], [], [4]], **LONG)
            with pytest.raises(UsageError, match="temperature is -1"):
                engine.stream([[3]], temperature=-1)
            assert len(await engine.generate([[3]], max_tokens=2)) == 1

    asyncio.run(ask())


def test_a_failing_step_is_told(
    fake_engine: EngineFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = fake_engine()
    monkeypatch.setattr(sync._session, "decode", lambda *_, **__: 1 // 0)

    async def ask() -> None:
        async with AsyncEngine(sync) as engine:
            with pytest.raises(EngineError, match="ZeroDivisionError"):
                await engine.generate([[3]], **LONG)

    asyncio.run(ask())


def test_closing_closes_the_engine(fake_engine: EngineFactory) -> None:
    sync = fake_engine()

    async def ask() -> None:
        async with AsyncEngine(sync) as engine:
            with pytest.raises(EngineError, match="in the middle of another stream"):
                sync.generate([[3]])
        with pytest.raises(EngineError, match="is being closed"):
            await engine.generate([[3]])

    asyncio.run(ask())
    with pytest.raises(EngineError, match="this engine is closed"):
        sync.generate([[3]])
