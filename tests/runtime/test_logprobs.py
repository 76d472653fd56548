"""Log probabilities of the tokens of an answer: the model's own, however it was decoded."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtime.callers import Caller
from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.errors import UsageError
from trtllm_dflash.runtime.engine import Engine
from trtllm_dflash.runtime.logprobs import token_logprobs
from trtllm_dflash.runtime.outputs import TokenLogprobs

PROMPTS = [[3, 4, 5], [1] * 11, [7, 8]]
ROUNDING = 2e-5


@pytest.fixture(scope="module")
def engine(built_engine: Path) -> Engine:
    return Engine.load(built_engine, num_threads=1)


def logprobs_of(answer: Any) -> list[TokenLogprobs]:
    assert answer.logprobs is not None
    assert [one.token_id for one in answer.logprobs] == answer.token_ids
    logprobs: list[TokenLogprobs] = answer.logprobs
    return logprobs


def assert_close(first: list[TokenLogprobs], second: list[TokenLogprobs]) -> None:
    assert [one.token_id for one in first] == [one.token_id for one in second]
    for a, b in zip(first, second, strict=True):
        assert a.logprob == pytest.approx(b.logprob, abs=ROUNDING)
        np.testing.assert_allclose(a.top, b.top, atol=ROUNDING)


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.7, "top_k": 5, "seed": 3}])
def test_drafts_and_neighbours_change_nothing(engine: Engine, sampling: dict[str, Any]) -> None:
    options: dict[str, Any] = {
        "max_tokens": 20,
        "stop_token_ids": (),
        "logprobs": 4,
        **sampling,
    }
    together = engine.generate(PROMPTS, **options)
    plain = engine.generate(PROMPTS, draft=False, **options)
    for drafted, undrafted in zip(together, plain, strict=True):
        assert_close(logprobs_of(drafted), logprobs_of(undrafted))
        assert len(drafted.token_ids) == 20
    without = engine.generate(PROMPTS, **(options | {"logprobs": None}))
    assert [a.token_ids for a in without] == [a.token_ids for a in together]
    assert [a.logprobs for a in without] == [None] * 3


def test_the_models_own_probabilities(engine: Engine) -> None:
    """Before the temperature; greedy tokens are the likeliest."""
    (answer,) = engine.generate([[3, 4]], max_tokens=6, stop_token_ids=(), logprobs=20)
    for one in logprobs_of(answer):
        assert one.top[0] == (one.token_id, one.logprob)
        assert [value for _, value in one.top] == sorted(
            (value for _, value in one.top), reverse=True
        )
        assert len({token for token, _ in one.top}) == 20
        assert 20 / 97 < sum(math.exp(value) for _, value in one.top) < 1
    first = answer.logprobs
    (sampled,) = engine.generate(
        [[3, 4]], max_tokens=1, stop_token_ids=(), logprobs=20, temperature=3.0, seed=1
    )
    assert first is not None
    assert sampled.logprobs is not None
    assert dict(sampled.logprobs[0].top) == pytest.approx(dict(first[0].top), abs=ROUNDING)


def test_none_of_the_likeliest(engine: Engine) -> None:
    (answer,) = engine.generate([[3, 4]], max_tokens=3, stop_token_ids=(), logprobs=0)
    assert [one.top for one in logprobs_of(answer)] == [()] * 3


def test_chunks_and_events_have_theirs(engine: Engine) -> None:
    options: dict[str, Any] = {"max_tokens": 12, "stop_token_ids": (), "logprobs": 2}
    (whole,) = engine.generate([[3, 4]], **options)
    streamed: list[TokenLogprobs] = []
    for chunk in engine.stream([[3, 4]], **options):
        assert chunk.logprobs is not None
        assert [one.token_id for one in chunk.logprobs] == chunk.token_ids
        streamed += chunk.logprobs
    assert_close(streamed, logprobs_of(whole))
    with engine.serve() as server:
        asked, other = Caller(), Caller()
        server.submit([7, 8], on_event=other, max_tokens=12, stop_token_ids=())
        server.submit([3, 4], on_event=asked, **options)
        asked.wait()
        other.wait()
    assert_close(
        [one for piece in asked.pieces for one in piece.logprobs or ()], logprobs_of(whole)
    )
    assert [piece.logprobs for piece in other.pieces] == [None] * len(other.pieces)


def test_engine_without_logits_says_what_to_build(built_engine: Path) -> None:
    engine = Engine.load(built_engine, num_threads=1)
    rows = tuple(row for row in engine.config.io if row.name != "logits")
    assert engine.config.has_logits
    engine.config = replace(engine.config, io=rows)
    with pytest.raises(UsageError, match=r"built without them.* --gather-generation-logits"):
        engine.generate([[3]], logprobs=1)
    assert engine.generate([[3]], max_tokens=1)


@pytest.mark.slow
def test_build_option(build_tiny: Callable[..., Path]) -> None:
    without = build_tiny(draft=False, gather_generation_logits=False)
    assert not EngineConfig.load(without).has_logits
    engine = Engine.load(without, num_threads=1)
    assert engine.generate([[3]], max_tokens=3)[0].logprobs is None


def test_equal_logits_come_by_id() -> None:
    logits = np.array([[1, 3, 3, 3, 0]], np.float32)
    (entry,) = token_logprobs(logits, [4], 2)
    assert [token for token, _ in entry.top] == [1, 2]
    total = math.log(3 * math.exp(3) + math.e + 1)
    assert entry.logprob == pytest.approx(-total)
    assert entry.top[0][1] == pytest.approx(3 - total)
    everything = token_logprobs(logits, [4], 50)[0].top
    assert sum(math.exp(value) for _, value in everything) == pytest.approx(1)
