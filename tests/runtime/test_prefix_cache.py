"""The prefix cache: a warm start gives the tokens and the accepted drafts of a cold one."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fixtures.tiny_hybrid import tiny_hybrid
from tests.fixtures.tiny_models import VOCAB
from tests.runtime.callers import Caller
from tests.runtime.fake_gpu import SAMPLED, Gpu, open_gpu
from tests.runtime.fake_session import FakeSession, fake_config
from trtllm_dflash.engine_dir.io_tensors import IoTensor
from trtllm_dflash.errors import UsageError
from trtllm_dflash.runtime.engine import Engine
from trtllm_dflash.runtime.outputs import Generation
from trtllm_dflash.runtime.prefix_cache import PrefixCache
from trtllm_dflash.runtime.sessions.copy_arena import CopyArena
from trtllm_dflash.runtime.sessions.ort import OrtSession

__all__ = ["open_gpu"]  # a fixture

ROOMY = 1 << 28


def warm_engine(session: Any, config: Any, *, every: int = 8) -> Engine:
    """Return an engine that keeps every prefix worth four tokens."""
    cache = PrefixCache(session, config, least_tokens=4, snapshot_tokens=every)
    return Engine(config, session, prefix_cache=cache)


def conversations(seed: int, vocab_size: int, count: int, longest: int) -> list[list[int]]:
    """Return prompts of which many begin alike."""
    chance = random.Random(seed)
    prompts: list[list[int]] = [[]]
    for _ in range(count):
        begin = chance.choice(prompts)
        begin = begin[: chance.randint(0, len(begin))]
        more = [chance.randrange(vocab_size) for _ in range(chance.randint(1, 12))]
        prompts.append([*begin, *more][:longest])
    return prompts[1:]


def check_equal(warm: Sequence[Generation], cold: Sequence[Generation]) -> None:
    for ours, theirs in zip(warm, cold, strict=True):
        assert ours.token_ids == theirs.token_ids
        assert ours.acceptance_lengths == theirs.acceptance_lengths
        assert ours.finish_reason == theirs.finish_reason


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    slots=st.integers(1, 4),
    chunk=st.integers(4, 9),
    room=st.integers(0, 300),
    every=st.one_of(st.none(), st.integers(1, 9)),
    lookahead=st.integers(0, 1),
    accuracy=st.floats(0, 1),
    temperature=st.sampled_from([0.0, 1.0]),
    max_tokens=st.integers(1, 12),
)
def test_warm_equals_cold(
    seed: int,
    slots: int,
    chunk: int,
    room: int,
    every: int | None,
    lookahead: int,
    accuracy: float,
    temperature: float,
    max_tokens: int,
) -> None:
    """Whatever is kept, dropped, moved and cut; `every`: copies that cannot be cut."""
    config = fake_config(max_batch_size=slots, max_num_tokens=chunk)
    if every is not None:
        state = IoTensor("s", "input", "", (), "", cache="target", recurrent=True)
        config = replace(config, io=(*config.io, state))
    session = FakeSession(config, accuracy=accuracy, lookahead=lookahead)
    session.room = room
    warm = warm_engine(session, config, every=every or 8)
    cold = Engine(config, FakeSession(config, accuracy=accuracy))
    prompts = conversations(seed, config.vocab_size, 12, config.max_input_len)
    options = {"max_tokens": max_tokens, "temperature": temperature, "seed": 5}
    for first in range(0, len(prompts), 5):
        batch = prompts[first : first + 5]
        check_equal(warm.generate(batch, **options), cold.generate(batch, **options))
    assert 0 <= session.room <= room


@pytest.fixture(scope="module")
def hybrid_engine(
    build_tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    target = tiny_hybrid(tmp_path_factory.mktemp("hybrid"), "qwen3_5")
    return build_tiny(target=target)


@pytest.mark.parametrize("sampling", [{}, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("kind", ["built_engine", "ring_engine", "hybrid_engine"])
def test_a_real_engine_warm_and_cold(
    kind: str, sampling: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    """Turns of a chat, questions on one text, and the same prompt again, in a full pool too."""
    directory = request.getfixturevalue(kind)
    cold = Engine.load(directory, num_threads=1)
    for room in (ROOMY, 300_000):
        session = OrtSession(directory, cold.config, num_threads=1, prefix_bytes=room)
        check_warm_and_cold(warm_engine(session, cold.config), cold, sampling)


def check_warm_and_cold(warm: Engine, cold: Engine, sampling: dict[str, Any]) -> None:
    options: dict[str, Any] = {"max_tokens": 20, "stop_token_ids": [11], **sampling}
    text = np.random.default_rng(3).integers(0, VOCAB, 40).tolist()
    chat = text[:9]
    cached = 0
    for turn in range(4):
        prompts = [chat, [*text, turn, turn + 7], [*text[:30], turn]]
        answers = warm.generate(prompts, **options)
        check_equal(answers, cold.generate(prompts, **options))
        again = warm.generate(prompts, **options)
        check_equal(again, answers)
        cached += sum(answer.cached_tokens for answer in [*answers, *again])
        chat = [*chat, *answers[0].token_ids, 1, turn]
    assert cached > 100


@pytest.mark.parametrize("kind", ["built_engine", "ring_engine", "hybrid_engine"])
def test_a_gpu_session_warm_and_cold(
    kind: str, open_gpu: Callable[..., Gpu], request: pytest.FixtureRequest
) -> None:
    """Over the fake driver: every copy is one of bytes, in the stream's order."""
    pytest.importorskip("tensorrt_rtx")
    directory = request.getfixturevalue(kind)
    gpu = open_gpu(directory, prefix_bytes=1 << 22)
    cold = Engine.load(directory, num_threads=1)
    check_warm_and_cold(warm_engine(gpu.session, gpu.session._config), cold, {})


def test_what_is_known_is_not_computed_again(built_engine: Path) -> None:
    """The prompt's last token always is, since it decides the first of the answer."""
    engine = Engine.load(built_engine, num_threads=1, prefix_cache_mib=64)
    prompt = list(range(1, 41))
    options: dict[str, Any] = {"max_tokens": 5, "stop_token_ids": []}
    counts = []
    for asked in (prompt, prompt, prompt[:20], [*prompt[:30], 9, 9]):
        (answer,) = engine.generate([asked], **options)
        counts.append(answer.cached_tokens)
    assert counts == [0, 39, 19, 30]
    chat = [*prompt, *answer.token_ids]
    (answer,) = engine.generate([prompt], **options)
    (answer,) = engine.generate([[*prompt, *answer.token_ids, 8]], **options)
    assert answer.cached_tokens == len(prompt) + 4  # an answer's last token has no position yet
    assert len(chat) == 45


def test_served_requests_say_what_was_cached(fake_engine: Callable[..., Engine]) -> None:
    config = fake_config()
    warm = warm_engine(FakeSession(config), config)
    with warm.serve() as server:
        counts = []
        for _ in range(2):
            caller = Caller()
            server.submit([3] * 12, on_event=caller, max_tokens=3)
            counts.append(caller.wait().cached_tokens)
    assert counts == [0, 11]


def test_the_least_used_copy_goes_first() -> None:
    config = fake_config()
    session = FakeSession(config)
    session.room = 30
    warm = warm_engine(session, config)
    prompts = [[token] * 9 for token in (3, 4, 5, 6)]
    for token in (3, 4, 5, 3, 6):
        warm.generate([[token] * 9], max_tokens=1)
    cached = [warm.generate([prompt], max_tokens=1)[0].cached_tokens for prompt in prompts]
    assert cached == [8, 0, 0, 0]


def test_cancelled_sequences_are_not_kept(fake_engine: Callable[..., Engine]) -> None:
    config = fake_config()
    session = FakeSession(config)
    warm = warm_engine(session, config)
    with warm.stream([[3] * 9], max_tokens=40, stop_token_ids=()) as stream:
        next(stream)
    assert session.room == 150 - 9, "the prompt alone is kept"


@pytest.mark.parametrize("size", [-1, 1.5, True, 1 << 30])
def test_a_bad_size_is_told(built_engine: Path, size: Any) -> None:
    with pytest.raises(UsageError, match=r"prefix_cache_mib is .*, expected an integer from 0"):
        Engine.load(built_engine, prefix_cache_mib=size)


def test_ranges_of_an_arena_never_overlap() -> None:
    chance = random.Random(8)
    arena, taken = CopyArena(1 << 16), dict[int, int]()
    for _ in range(3000):
        if taken and chance.random() < 0.5:
            offset = chance.choice(list(taken))
            arena.give_back(offset, taken.pop(offset))
            continue
        nbytes = chance.randint(1, 5000)
        found = arena.take(nbytes)
        if found is None:
            continue
        assert 0 <= found <= (1 << 16) - nbytes
        assert all(found + nbytes <= at or at + size <= found for at, size in taken.items())
        taken[found] = nbytes
    for offset, nbytes in taken.items():
        arena.give_back(offset, nbytes)
    assert arena.take(1 << 16) == 0, "what is free again is one range"
