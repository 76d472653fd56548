"""The CPU session on real tiny engines: caches in place, slots apart, no copies."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.errors import EngineError
from trtllm_dflash.runtime.engine import Engine
from trtllm_dflash.runtime.sessions.base import SlotSampling
from trtllm_dflash.runtime.sessions.ort import OrtSession

PROMPTS = [[3, 4, 5], [1] * 11, [7, 8], [9, 9, 9, 9], [6], list(range(20, 50)), [96, 96, 3]]


def open_directly(directory: Path) -> OrtSession:
    return OrtSession(directory, EngineConfig.load(directory), num_threads=1)


GREEDY = SlotSampling()


def prefill(
    session: OrtSession, token_ids: list[int], *, slot: int = 0, past_len: int | None = 0
) -> int:
    """Prefill one chunk in `slot` and return its next token.

    It goes behind `past_len` positions, or behind those that the slot holds (None).
    """
    if past_len is not None:
        session.open_slot(slot, GREEDY)
        session._slots["past_len"][slot] = past_len
    session.prefill(slot, np.array(token_ids))
    return int(session.collect().new_ids[0, 0])


def decode(session: OrtSession, count: int, width: int, steps: int) -> list[list[int]]:
    """Return what `steps` decode steps commit in each of the slots 0 … count - 1."""
    tokens: list[list[int]] = [[] for _ in range(count)]
    for _ in range(steps):
        session.decode(count, width)
        result = session.collect()
        for row in range(count):
            tokens[row] += result.new_ids[row, : result.num_new[row]].tolist()
    return tokens


@pytest.mark.parametrize(
    "sampling",
    [{}, {"temperature": 0.9, "top_k": 20, "top_p": 0.9, "min_p": 0.01, "seed": 3}],
    ids=["greedy", "sampled"],
)
def test_batch_equals_alone_equals_plain(built_engine: Path, sampling: dict[str, Any]) -> None:
    engine = Engine.load(built_engine, num_threads=1)
    options: dict[str, Any] = {"max_tokens": 40, "stop_token_ids": [11], **sampling}
    together = engine.generate(PROMPTS, **options)
    plain = engine.generate(PROMPTS, draft=False, **options)
    for prompt, batched, undrafted in zip(PROMPTS, together, plain, strict=True):
        (alone,) = engine.generate([prompt], **options | {"seed": batched.seed})
        assert batched.token_ids == alone.token_ids == undrafted.token_ids
        assert batched.acceptance_lengths == alone.acceptance_lengths
        assert batched.finish_reason == alone.finish_reason


def test_the_mask_token_is_an_ordinary_prompt_token(
    built_engine: Path, build_tiny: Callable[..., Path]
) -> None:
    plain = Engine.load(build_tiny(draft=False), num_threads=1)
    drafted = Engine.load(built_engine, num_threads=1)
    prompt = [[5, 96, 96, 7]]
    assert drafted.generate(prompt)[0].token_ids == plain.generate(prompt)[0].token_ids


def test_a_sequence_fills_max_seq_len(built_engine: Path) -> None:
    engine = Engine.load(built_engine, num_threads=1)
    answers = engine.generate(PROMPTS[:3], max_tokens=1000, stop_token_ids=[])
    assert [
        len(answer.token_ids) + len(prompt)
        for answer, prompt in zip(answers, PROMPTS, strict=False)
    ] == [192] * 3
    assert {answer.finish_reason for answer in answers} == {"length"}


def test_steps_may_be_read_late(built_engine: Path) -> None:
    engine, ahead = (Engine.load(built_engine, num_threads=1) for _ in range(2))
    ahead._session.lookahead = 1  # type: ignore[misc]
    for sampling in ({}, {"temperature": 0.9, "seed": 3}):
        options: dict[str, Any] = {"max_tokens": 30, "stop_token_ids": [11], **sampling}
        late, at_once = ahead.generate(PROMPTS, **options), engine.generate(PROMPTS, **options)
        assert [answer.token_ids for answer in late] == [answer.token_ids for answer in at_once]


def caches_of(session: OrtSession) -> dict[str, np.ndarray]:
    return {
        name: array
        for name, array in session._slots.items()
        if name.startswith(("target_", "draft_key", "draft_value"))
    }


def test_step_writes_only_its_rows_and_slots(built_engine: Path) -> None:
    session = open_directly(built_engine)
    prefill(session, [3, 4, 5], slot=1, past_len=10)
    for name, cache in caches_of(session).items():
        written = np.abs(cache).sum(axis=(1, 3)) > 0  # [slots, cache_len]
        rows = 3 if name.startswith("target") else 3 + session._config.block_size
        expected = np.zeros_like(written)
        expected[1, 10 : 10 + rows] = True
        assert (written == expected).all(), name


def test_moved_slot_goes_on_as_before(built_engine: Path) -> None:
    there, here = open_directly(built_engine), open_directly(built_engine)
    sampling = SlotSampling(temperature=0.9, top_p=0.95, top_k=20, noise_key=(1, 2, 3, 4))
    for session, slot in ((there, 2), (here, 0)):
        session.open_slot(slot, sampling)
        prefill(session, [3, 4, 5, 6], slot=slot, past_len=None)
    prefill(there, [9] * 8)
    there.move_slot(2, 0)
    assert (
        caches_of(there)["target_key.0"][0, :, 4:8] != 0
    ).any()  # not of the moved one: rows in use only
    assert decode(there, 1, 4, steps=8) == decode(here, 1, 4, steps=8)


def test_moved_slot_takes_its_rings_along(ring_engine: Path) -> None:
    """Rings that have wrapped around move whole, the others move the rows in use."""
    session = open_directly(ring_engine)
    for length in (70, 20):
        for slot, token in ((0, 9), (2, 3)):
            session.open_slot(slot, GREEDY)
            for first in range(0, length, 8):
                prefill(
                    session,
                    list(range(token, token + 8))[: length - first],
                    slot=slot,
                    past_len=None,
                )
        before = {name: cache.copy() for name, cache in caches_of(session).items()}
        session.move_slot(2, 0)
        caches = caches_of(session)
        assert {caches["draft_key.0"].shape[2], caches["draft_value.1"].shape[2]} == {32}
        assert caches["draft_key.2"].shape[2] == session._config.cache_len
        for name, cache in caches.items():
            np.testing.assert_array_equal(
                cache[0][:, :length], before[name][2][:, :length], err_msg=name
            )
            np.testing.assert_array_equal(
                cache[0][:, length:], before[name][0][:, length:], err_msg=name
            )


def test_step_wider_than_the_rings_is_refused(ring_engine: Path) -> None:
    session = open_directly(ring_engine)
    session.open_slot(0, GREEDY)
    with pytest.raises(
        EngineError, match="a step of width 9 is wider than max_num_tokens, 8, for which"
    ):
        session.prefill(0, np.arange(9))


def test_outputs_are_the_callers_own(built_engine: Path) -> None:
    session = open_directly(built_engine)
    results = []
    for token in (3, 50):
        session.open_slot(0, GREEDY)
        session.prefill(0, np.array([token]))
        results.append(session.collect())
        before = results[0].new_ids.copy()
    assert (results[0].new_ids == before).all()
    assert not np.shares_memory(results[0].new_ids, results[1].new_ids)
    assert not np.shares_memory(results[0].num_new, results[1].num_new)


@pytest.fixture
def ort_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ONNX Runtime warn of every scatter that it could not do in place."""
    monkeypatch.setattr("trtllm_dflash.runtime.sessions.ort.LOG_SEVERITY", 2)


@pytest.mark.usefixtures("ort_warnings")
def test_caches_are_updated_in_place(
    built_engine: Path, ring_engine: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for directory in (built_engine, ring_engine):
        Engine.load(directory, num_threads=1).generate(PROMPTS, max_tokens=12)
        assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("ort_warnings")
def test_caches_elsewhere_give_the_warning(
    built_engine: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    session = open_directly(built_engine)
    binding = session._binding_of(0, 1, with_logits=False)
    for tensor in session._config.io:
        if tensor.aliases:
            elsewhere = np.zeros_like(session._slots[tensor.aliases][:1])
            binding._bind(tensor, elsewhere)
    prefill(session, [3])
    assert "in-place" in capfd.readouterr().err


def test_step_time_does_not_grow_with_the_cache(build_tiny: Callable[..., Path]) -> None:
    seconds = {}
    for max_seq_len in (192, 192 * 128):
        session = open_directly(
            build_tiny(max_batch_size=1, max_seq_len=max_seq_len, max_input_len=150)
        )
        prefill(session, [3], past_len=100)
        best = float("inf")
        for _ in range(30):
            start = time.perf_counter()
            session._slots["past_len"][0] = 100
            session.decode(1, 1)
            session.collect()
            best = min(best, time.perf_counter() - start)
        seconds[max_seq_len] = best
    # Copying the larger caches (about 35 MB) would take eight times as long as the whole small
    # step.
    assert seconds[192 * 128] < 3 * seconds[192], seconds


def test_graph_that_does_not_load(built_engine: Path, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(
        EngineError,
        match=r"model\.onnx: ONNX Runtime .* cannot load this graph .*dflash-trt inspect",
    ):
        OrtSession(tmp_path, EngineConfig.load(built_engine))


def test_graph_that_differs_from_config_json(built_engine: Path, tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 18]> g (float[1] x) => (float[1] y) { y = Abs(x) }'
    )
    onnx.save(model, tmp_path / "model.onnx")
    words = (
        r"model\.onnx and config\.json disagree on the inputs and outputs adjusts, bad_words,"
        r" .*build the engine again"
    )
    with pytest.raises(EngineError, match=words):
        OrtSession(tmp_path, EngineConfig.load(built_engine))
