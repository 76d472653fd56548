"""The GPU session on a fake GPU: its tokens, its slots, its steps in a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

trt = pytest.importorskip("tensorrt_rtx")

from tests.fixtures.quantized import quantized_copy
from tests.fixtures.tiny_models import EOS_ID
from tests.runtime import fake_trt
from tests.runtime.fake_cuda import FakeDriver, real
from tests.runtime.fake_gpu import GREEDY, PROMPTS, SAMPLED, Gpu, open_gpu, tokens_of
from tests.runtime.stated_engine import (
    StatedContext,
    StatedEngine,
    StatedKernels,
    StatedRuntimeConfig,
)
from trtllm_dflash.errors import EngineError
from trtllm_dflash.options.sampling import SamplingParams
from trtllm_dflash.runtime.engine import Engine
from trtllm_dflash.runtime.preprocess import make_requests
from trtllm_dflash.runtime.scheduler import Scheduler
from trtllm_dflash.runtime.sessions import trt_engine
from trtllm_dflash.runtime.sessions.base import SlotSampling
from trtllm_dflash.trt.flavors import TensorRT

__all__ = ["open_gpu"]  # a fixture


@pytest.mark.slow
@pytest.mark.parametrize("sampling", [{}, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("eager", [False, True], ids=["late", "early"])
@pytest.mark.parametrize("with_plugins", [True, False], ids=["plugins", "bodies"])
def test_tokens_are_the_cpu_sessions(
    open_gpu: Callable[..., Gpu],
    built_engine: Path,
    with_plugins: bool,
    eager: bool,
    sampling: dict[str, Any],
) -> None:
    gpu, cpu = (
        open_gpu(with_plugins=with_plugins, eager=eager),
        Engine.load(built_engine, num_threads=1),
    )
    options: dict[str, Any] = {"max_tokens": 40, "stop_token_ids": [11], **sampling}
    assert tokens_of(gpu.engine, PROMPTS, **options) == tokens_of(cpu, PROMPTS, **options)
    # Once more, on what the first call has left in the slots; then narrower steps.
    assert tokens_of(gpu.engine, PROMPTS[::-1], **options) == tokens_of(
        cpu, PROMPTS[::-1], **options
    )
    for draft_len in (0, 1):
        narrow = options | {"draft_len": draft_len}
        assert tokens_of(gpu.engine, PROMPTS[:4], **narrow) == tokens_of(
            cpu, PROMPTS[:4], **narrow
        )


@pytest.mark.parametrize("with_plugins", [True, False], ids=["plugins", "bodies"])
def test_rings(open_gpu: Callable[..., Gpu], ring_engine: Path, with_plugins: bool) -> None:
    """Answers that go round the drafter's rings several times, drafts as well.

    The first one soon fills its sequence, and the last slot is moved into its place.
    """
    gpu, cpu = (
        open_gpu(ring_engine, with_plugins=with_plugins),
        Engine.load(ring_engine, num_threads=1),
    )
    prompts = [[*range(40, 90)] * 3, *PROMPTS[:2]]
    answers = [
        engine.generate(prompts, max_tokens=150, stop_token_ids=[])
        for engine in (gpu.engine, cpu)
    ]
    for ours, theirs in zip(*answers, strict=True):
        assert ours.token_ids == theirs.token_ids
        assert ours.acceptance_lengths == theirs.acceptance_lengths
    assert [len(answer.token_ids) for answer in answers[0]] == [42, 150, 150]


def test_plain_engine(open_gpu: Callable[..., Gpu], build_tiny: Callable[..., Path]) -> None:
    plain = build_tiny(draft=False)
    gpu, cpu = open_gpu(plain), Engine.load(plain, num_threads=1)
    assert tokens_of(gpu.engine, PROMPTS, **SAMPLED) == tokens_of(cpu, PROMPTS, **SAMPLED)


@pytest.mark.slow
def test_fp8_caches_are_packed_in_one_byte(
    open_gpu: Callable[..., Gpu],
    build_tiny: Callable[..., Path],
    make_target: Callable[..., Path],
    tmp_path: Path,
) -> None:
    source = make_target("qwen3", tied=True, eos_token_ids=(EOS_ID,))
    target = quantized_copy(source, tmp_path / "target", "fp8", kv_cache=True)
    built = build_tiny(target=target, max_seq_len=128)
    gpu, cpu = open_gpu(built, fp8_caches=True), Engine.load(built, num_threads=1)
    assert tokens_of(gpu.engine, PROMPTS) == tokens_of(cpu, PROMPTS)


@pytest.mark.slow
def test_tensorrt_flavor(
    open_gpu: Callable[..., Gpu], built_engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trt_engine, "flavor", TensorRT)
    gpu, cpu = open_gpu(), Engine.load(built_engine, num_threads=1)
    assert tokens_of(gpu.engine, PROMPTS, **SAMPLED) == tokens_of(cpu, PROMPTS, **SAMPLED)
    user_managed = trt.ExecutionContextAllocationStrategy.USER_MANAGED
    assert {context.config for context in gpu.trt.contexts} == {user_managed}
    assert any(run.captured for run in gpu.trt.runs)
    with pytest.raises(
        EngineError,
        match=r"TensorRT [\d.]+ cannot load this engine\. It was built .*\(version unknown\)",
    ):
        open_gpu(invalid=1)


def test_a_sequence_fills_max_seq_len(open_gpu: Callable[..., Gpu]) -> None:
    answers = open_gpu().engine.generate(PROMPTS[:3], max_tokens=1000, stop_token_ids=[])
    assert [
        len(answer.token_ids) + len(prompt)
        for answer, prompt in zip(answers, PROMPTS, strict=False)
    ] == [192] * 3


def test_decode_step_is_captured_once_for_each_shape(
    open_gpu: Callable[..., Gpu],
) -> None:
    gpu = open_gpu()
    for draft_len in (3, 0):
        gpu.engine.generate(PROMPTS[:3], max_tokens=20, stop_token_ids=[], draft_len=draft_len)
    generation = [run for run in gpu.trt.runs if run.profile == 1]
    steps = {(run.shapes["input_ids"], run.context) for run in generation}
    assert {shape for shape, _ in steps} == {
        (batch, width) for batch in (1, 2, 3) for width in (4, 1)
    } & {run.shapes["input_ids"] for run in generation}
    assert len(steps) == len({shape for shape, _ in steps})  # a context each
    assert (3, 4) in {shape for shape, _ in steps}
    for step in steps:
        captured = [
            run.captured for run in generation if (run.shapes["input_ids"], run.context) == step
        ]
        assert captured in (
            [False],
            [False, True],
        )  # as it is once, then captured; the rest is launches
    assert gpu.driver.calls["cuGraphInstantiate"] == sum(run.captured for run in generation)
    assert gpu.driver.calls["cuGraphLaunch"] > 10


def test_shapes_and_addresses_of_a_step_are_constant(open_gpu: Callable[..., Gpu]) -> None:
    gpu = open_gpu(capture=False)
    gpu.engine.generate(PROMPTS[:3], max_tokens=30, stop_token_ids=[])
    generation = [
        run for run in gpu.trt.runs if run.profile == 1 and run.shapes["input_ids"] == (3, 4)
    ]
    assert len(generation) > 5
    assert all(run == generation[0] for run in generation)
    assert gpu.driver.calls["cuGraphLaunch"] == 0
    for run in gpu.trt.runs:
        caches = {
            name: address
            for name, address in run.addresses.items()
            if name.startswith(("target", "draft"))
        }
        assert all(caches[name] == caches[name.removesuffix(".out")] for name in caches)


@pytest.mark.slow
def test_capture_can_be_switched_off(
    open_gpu: Callable[..., Gpu], monkeypatch: pytest.MonkeyPatch
) -> None:
    captured = open_gpu()
    tokens = tokens_of(captured.engine, PROMPTS[:4], **SAMPLED)
    monkeypatch.setenv("DFLASH_CUDA_GRAPH", "0")
    plain = open_gpu()
    assert tokens_of(plain.engine, PROMPTS[:4], **SAMPLED) == tokens
    assert (
        captured.driver.calls["cuGraphLaunch"] > 0,
        plain.driver.calls["cuGraphLaunch"],
    ) == (
        True,
        0,
    )


@pytest.mark.slow
def test_engine_without_capture_is_launched(
    open_gpu: Callable[..., Gpu], caplog: pytest.LogCaptureFixture
) -> None:
    gpu = open_gpu(capturable=False)
    assert tokens_of(gpu.engine, PROMPTS[:4], **SAMPLED) == tokens_of(
        open_gpu().engine, PROMPTS[:4], **SAMPLED
    )
    assert gpu.driver.calls["cuGraphLaunch"] == 0
    assert "cannot be captured in a CUDA graph" in caplog.text


def test_host_waits_only_for_late_results(open_gpu: Callable[..., Gpu]) -> None:
    gpu = open_gpu()
    gpu.engine.generate(PROMPTS[:3], max_tokens=8, stop_token_ids=[])
    session, driver = gpu.session, gpu.driver
    session.open_slot(0, GREEDY)
    session.prefill(0, np.array([3, 4, 5]))
    session.collect()
    for _ in range(3):
        session.decode(1, 4)
        session.collect()
    before, driver.to_host = driver.calls.copy(), []
    session.decode(1, 4)
    for _ in range(20):
        session.decode(1, 4)
        session.collect()
    session.collect()
    calls = driver.calls - before
    assert calls.pop("cuCtxSetCurrent") == 2 * 21  # a write to the thread's memory
    # A step: one launch, one copy of all its results, one mark; its results: one wait.
    assert calls == dict.fromkeys(
        ("cuGraphLaunch", "cuMemcpyAsync", "cuEventRecord", "cuEventSynchronize"), 21
    )
    assert len(set(driver.to_host)) == 1
    assert max(driver.to_host) < 2048


@pytest.mark.parametrize("eager", [False, True], ids=["late", "early"])
def test_slots_are_opened_behind_steps_in_flight(
    open_gpu: Callable[..., Gpu], built_engine: Path, eager: bool
) -> None:
    """Nothing waits for the stream, and each slot gets its own sampling."""
    gpu, cpu = open_gpu(eager=eager), Engine.load(built_engine, num_threads=1)
    options: dict[str, Any] = {**SAMPLED, "max_tokens": 40, "stop_token_ids": []}
    prompts = [PROMPTS[0], *PROMPTS[2:4]]  # none overtakes another
    requests = make_requests(prompts, SamplingParams(**options), gpu.engine.config)
    size = gpu.engine.config.vocab_size
    scheduler = Scheduler(gpu.session, requests[:1], vocab_size=size, prompt_tokens_per_step=16)
    scheduler.discard()
    for _ in range(2):  # the prompt alone, then a step with another one in flight
        scheduler.step()
    waits = gpu.driver.calls["cuStreamSynchronize"]
    for request in requests[1:]:
        scheduler.add(request)
        while request.slot is None:
            assert gpu.session._in_flight
            scheduler.step()
    while scheduler.busy:
        scheduler.step()
    assert gpu.driver.calls["cuStreamSynchronize"] == waits
    assert [request.output_ids for request in requests] == tokens_of(cpu, prompts, **options)


def test_step_in_flight_is_not_read(open_gpu: Callable[..., Gpu]) -> None:
    gpu = open_gpu(eager=False)
    session = gpu.session
    session.open_slot(0, GREEDY)
    session.prefill(0, np.array([3, 4, 5]))
    session.decode(1, 4)
    first, second = session.collect(), session.collect()
    cpu_first = (
        open_gpu(eager=True)
        .engine.generate([[3, 4, 5]], max_tokens=8, stop_token_ids=[])[0]
        .token_ids
    )
    both = [*first.new_ids[0, :1].tolist(), *second.new_ids[0, : second.num_new[0]].tolist()]
    assert both == cpu_first[: len(both)]


@pytest.mark.parametrize("route", [(2, 0), (2, 1, 0)], ids=["once", "twice"])
def test_moved_slot_goes_on_as_before(
    open_gpu: Callable[..., Gpu], route: tuple[int, ...]
) -> None:
    tokens = []
    sampling = SlotSampling(
        temperature=0.9,
        top_p=0.95,
        top_k=20,
        noise_key=(1, 2, 3, 4),
    )
    for stations in ((0,), route):
        session = open_gpu().session
        for slot in range(3):
            session.open_slot(slot, sampling)
            session.prefill(slot, np.arange(3, 10 if slot == stations[0] else 5))
            session.collect()
        for source, target in pairwise(stations):
            session.move_slot(source, target)
        tokens.append([])
        for _ in range(8):
            session.decode(1, 4)
            result = session.collect()
            tokens[-1] += result.new_ids[0, : result.num_new[0]].tolist()
    assert tokens[0] == tokens[1]
    assert len(tokens[0]) >= 8


def test_slots_have_their_own_sampling(
    open_gpu: Callable[..., Gpu],
) -> None:
    samplings = [SlotSampling(temperature=2.0, noise_key=(slot, 7, 5, 3)) for slot in range(3)]
    tokens = []
    for slots in ((0, 1, 2), (0,), (1,), (2,)):
        session = open_gpu().session
        for slot in slots:
            session.open_slot(slot, samplings[slot])
        for slot in slots:
            session.prefill(slot, np.array([3, 4]))
            session.collect()
        if len(slots) == 1 and slots != (0,):
            session.move_slot(slots[0], 0)
        rows: list[list[int]] = [[] for _ in slots]
        for _ in range(6):
            session.decode(len(slots), 1)
            result = session.collect()
            for row, new in zip(rows, result.new_ids[:, 0].tolist(), strict=True):
                row.append(new)
        tokens.append(rows)
    assert tokens[0] == [rows[0] for rows in tokens[1:]]
    assert len({tuple(row) for row in tokens[0]}) == 3


def test_closed_stream_leaves_nothing_to_the_next(
    open_gpu: Callable[..., Gpu], built_engine: Path
) -> None:
    gpu, cpu = open_gpu(), Engine.load(built_engine, num_threads=1)
    stream = gpu.engine.stream(PROMPTS[:3], stop_token_ids=[])
    for _ in range(5):
        next(stream)
    stream.close()
    assert gpu.session._in_flight
    assert tokens_of(gpu.engine, PROMPTS[3:]) == tokens_of(cpu, PROMPTS[3:])


def test_memory_goes_back_with_the_session(open_gpu: Callable[..., Gpu]) -> None:
    gpu = open_gpu()
    gpu.engine.generate(PROMPTS[:2], max_tokens=8)
    gpu.engine.generate(PROMPTS[:1], max_tokens=2)
    driver, total = gpu.driver, gpu.driver._total
    assert driver.free < total
    del gpu
    assert driver.free == total


def test_fakes_have_only_names_of_the_real_modules(open_gpu: Callable[..., Gpu]) -> None:
    """A call of a name that does not exist must not pass because the fake has it."""
    context = open_gpu().trt.contexts[0]
    used: dict[type, set[str]] = {
        trt.Runtime: {*vars(fake_trt.FakeRuntime)},
        trt.ICudaEngine: {*vars(fake_trt.FakeEngine), *vars(StatedEngine)},
        trt.IExecutionContext: {*vars(fake_trt.FakeContext), *vars(StatedContext)},
        trt.IRuntimeConfig: {*vars(context.config), *vars(StatedRuntimeConfig)},
        trt.IRuntimeCache: {*vars(StatedKernels)} - {"KIND", "finish"},
    }
    for stub, names in used.items():
        assert {name for name in names if not name.startswith("_")} <= {*dir(stub)}, stub
    assert {name for name in vars(FakeDriver) if name.startswith("cu")} <= {*dir(real)}
    assert context.config.cuda_graph_strategy in trt.CudaGraphStrategy.__members__.values()


@pytest.mark.parametrize("eager", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_logprobs_are_the_cpu_sessions(
    open_gpu: Callable[..., Gpu], built_engine: Path, eager: bool
) -> None:
    """Fetched for the slots that ask alone: without one nothing of that size goes to the host."""
    gpu = open_gpu(eager=eager)
    cpu = Engine.load(built_engine, num_threads=1)
    options: dict[str, Any] = {"max_tokens": 9, "stop_token_ids": ()}
    gpu.engine.generate(PROMPTS[:3], **options)
    assert len(set(gpu.driver.to_host)) == 1  # the results alone
    for ours, theirs in zip(
        gpu.engine.generate(PROMPTS[:4], logprobs=2, **options),
        cpu.generate(PROMPTS[:4], logprobs=2, **options),
        strict=True,
    ):
        assert ours.token_ids == theirs.token_ids
        assert ours.logprobs is not None
        assert theirs.logprobs is not None
        for here, there in zip(ours.logprobs, theirs.logprobs, strict=True):
            np.testing.assert_allclose(here.top, there.top, atol=2e-5)
    gpu.driver.to_host.clear()
    gpu.engine.generate(PROMPTS[:3], **options)
    assert len(set(gpu.driver.to_host)) == 1  # the results alone
