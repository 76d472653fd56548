"""The CPU session on really built tiny engines: caches in place, slots apart from each other, no copies."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from trtllm_dflash.errors import EngineError
from trtllm_dflash.runtime.config import EngineConfig
from trtllm_dflash.runtime.engine import Engine
from trtllm_dflash.runtime.ort_session import OrtSession
from trtllm_dflash.runtime.session import StepInputs, StepOutputs

PROMPTS = [[3, 4, 5], [1] * 11, [7, 8], [9, 9, 9, 9], [6], list(range(20, 50)), [96, 96, 3]]


def open_directly(directory: Path) -> OrtSession:
    return OrtSession(directory, EngineConfig.load(directory), num_threads=1)


def step(session: OrtSession, tokens: list[list[int]], past_len: list[int], *, first_slot: int = 0) -> StepOutputs:
    batch = len(tokens)
    return session.step(
        StepInputs(
            first_slot=first_slot,
            input_ids=np.array(tokens, np.int64),
            num_known=np.full(batch, len(tokens[0]), np.int32),
            past_len=np.array(past_len, np.int32),
            temperature=np.zeros(batch, np.float32),
            top_p=np.ones(batch, np.float32),
            top_k=np.zeros(batch, np.int32),
            uniforms=np.zeros((batch, 1), np.float32),
        )
    )


@pytest.mark.parametrize(
    "sampling", [{}, {"temperature": 0.9, "top_k": 20, "top_p": 0.9, "seed": 3}], ids=["greedy", "sampled"]
)
def test_batch_equals_alone_equals_plain(built_engine: Path, sampling: dict[str, Any]) -> None:
    engine = Engine.load(built_engine, num_threads=1)
    options: dict[str, Any] = {"max_new_tokens": 40, "stop_token_ids": [11], **sampling}
    together = engine.generate(PROMPTS, **options)
    plain = engine.generate(PROMPTS, draft=False, **options)
    for prompt, batched, undrafted in zip(PROMPTS, together, plain, strict=True):
        (alone,) = engine.generate([prompt], **options)
        assert batched.token_ids == alone.token_ids == undrafted.token_ids
        assert batched.acceptance_lengths == alone.acceptance_lengths
        assert batched.finish_reason == alone.finish_reason


def test_the_mask_token_is_an_ordinary_prompt_token(built_engine: Path, build_tiny: Callable[..., Path]) -> None:
    plain = Engine.load(build_tiny(draft=False), num_threads=1)
    drafted = Engine.load(built_engine, num_threads=1)
    prompt = [[5, 96, 96, 7]]
    assert drafted.generate(prompt)[0].token_ids == plain.generate(prompt)[0].token_ids


def test_a_sequence_fills_max_seq_len(built_engine: Path) -> None:
    engine = Engine.load(built_engine, num_threads=1)
    answers = engine.generate(PROMPTS[:3], max_new_tokens=1000, stop_token_ids=[])
    assert [len(answer.token_ids) + len(prompt) for answer, prompt in zip(answers, PROMPTS, strict=False)] == [192] * 3
    assert {answer.finish_reason for answer in answers} == {"length"}


def test_a_step_writes_its_own_rows_of_its_own_slots(built_engine: Path) -> None:
    session = open_directly(built_engine)
    step(session, [[3, 4, 5]], [10], first_slot=1)
    for name, cache in session._caches.items():
        written = np.abs(cache).sum(axis=(1, 3)) > 0  # [slots, cache_len]
        rows = 3 if name.startswith("target") else 3 + session._config.block_size
        expected = np.zeros_like(written)
        expected[1, 10 : 10 + rows] = True
        assert (written == expected).all(), name


def test_a_moved_slot_goes_on_as_before(built_engine: Path) -> None:
    there, here = open_directly(built_engine), open_directly(built_engine)
    for session, slot in ((there, 2), (here, 0)):
        step(session, [[3, 4, 5, 6]], [0], first_slot=slot)
    there.move_slot(2, 0, rows=4)
    moved, stayed = step(there, [[7]], [4]), step(here, [[7]], [4])
    assert (moved.next_ids == stayed.next_ids).all()
    assert (moved.next_len == stayed.next_len).all()


def test_outputs_are_the_callers_own(built_engine: Path) -> None:
    session = open_directly(built_engine)
    first = step(session, [[3]], [0])
    before = first.next_ids.copy()
    step(session, [[50]], [1])
    assert (first.next_ids == before).all()


def test_caches_are_updated_in_place(built_engine: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Engine.load(built_engine, num_threads=1).generate(PROMPTS, max_new_tokens=12)
    assert capfd.readouterr() == ("", "")  # ONNX Runtime warns of every scatter that it could not do in place


def test_the_warning_that_the_test_above_looks_for(built_engine: Path, capfd: pytest.CaptureFixture[str]) -> None:
    session = open_directly(built_engine)
    binding = session._bind(0, 1)
    for port in session._config.ports:
        if port.aliases:
            binding._bind(port, np.zeros_like(session._caches[port.aliases][:1]))  # outputs elsewhere
    session._bindings[0, 1] = binding
    step(session, [[3]], [0])
    assert "in-place" in capfd.readouterr().err


def test_a_steps_time_does_not_grow_with_the_cache(build_tiny: Callable[..., Path]) -> None:
    seconds = {}
    for max_seq_len in (192, 192 * 128):
        session = open_directly(build_tiny(max_batch_size=1, max_seq_len=max_seq_len, max_input_len=150))
        best = float("inf")
        for _ in range(30):
            start = time.perf_counter()
            step(session, [[3]], [100])
            best = min(best, time.perf_counter() - start)
        seconds[max_seq_len] = best
    # Copying the larger caches (about 35 MB) would take eight times as long as the whole small step.
    assert seconds[192 * 128] < 3 * seconds[192], seconds


def test_a_graph_that_does_not_load(built_engine: Path, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(EngineError, match=r"model\.onnx: ONNX Runtime .* cannot load this graph .*dflash-trt inspect"):
        OrtSession(tmp_path, EngineConfig.load(built_engine))


def test_a_graph_that_config_json_does_not_describe(built_engine: Path, tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 18]> g (float[1] x) => (float[1] y) { y = Abs(x) }'
    )
    onnx.save(model, tmp_path / "model.onnx")
    words = r"config\.json and model\.onnx disagree on the inputs and outputs draft_key\.0, .*Build the engine again"
    with pytest.raises(EngineError, match=words):
        OrtSession(tmp_path, EngineConfig.load(built_engine))
