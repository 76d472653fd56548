"""The GPU session on a machine without a GPU: a driver and a TensorRT that are as unkind as the real ones may be.

What stands in for the engine is the CPU engine's own graph, so tokens must be those of the CPU session.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

trt = pytest.importorskip("tensorrt_rtx")
pytest.importorskip("cuda.bindings.driver")

from tests.quantized import quantized_copy
from tests.runtime import fake_trt
from tests.runtime.fake_cuda import FakeDriver, real
from tests.runtime.fake_trt import FakeTrt
from tests.tiny import EOS_ID
from trtllm_dflash.errors import EngineError
from trtllm_dflash.runtime import cuda, rtx_engine
from trtllm_dflash.runtime.config import EngineConfig
from trtllm_dflash.runtime.engine import Engine
from trtllm_dflash.runtime.rtx_session import RtxSession
from trtllm_dflash.runtime.session import SlotSampling
from trtllm_dflash.trt.kinds import TensorRt

PROMPTS = [[3, 4, 5], [1] * 11, [7, 8], [9, 9, 9, 9], [6], list(range(20, 50)), [96, 96, 3]]
SAMPLED: dict[str, Any] = {"temperature": 0.9, "top_k": 20, "top_p": 0.9, "seed": 3}
GREEDY = SlotSampling(0.0, 1.0, 0, np.zeros(0, np.float32))


@dataclass
class Gpu:
    """A session on a made-up GPU, with what it did there."""

    session: RtxSession
    engine: Engine
    driver: FakeDriver
    trt: FakeTrt


@pytest.fixture
def open_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, built_engine: Path) -> Callable[..., Gpu]:
    """`open_gpu(source=built_engine, with_plugins=True, eager=False, capture=True, …)`."""

    def open_it(
        source: Path = built_engine,
        *,
        with_plugins: bool = True,
        fp8_caches: bool = False,
        capture: bool | None = None,
        capturable: bool = True,
        invalid: int = 0,
        **driver_options: Any,
    ) -> Gpu:
        shutil.copytree(source, tmp_path / "engine", dirs_exist_ok=True)
        (tmp_path / "engine" / "rank0.engine").write_text(str(tmp_path / "engine"))
        facts = json.loads((source / "manifest.json").read_text())
        facts["versions"]["tensorrt-rtx-cu13"] = "1.6.0"
        (tmp_path / "engine" / "manifest.json").write_text(json.dumps(facts))
        if with_plugins:
            (tmp_path / "engine" / "with_plugins").touch()
        driver = FakeDriver(**driver_options)
        trt = FakeTrt(driver, capturable=capturable, invalid=invalid)
        monkeypatch.setattr(cuda, "driver", driver)
        monkeypatch.setattr(rtx_engine, "trt", trt)
        config = EngineConfig.load(source)
        ports = tuple(p for p in config.ports if not (with_plugins and p.name == "kv_positions"))
        if fp8_caches:
            (tmp_path / "engine" / "fp8_caches").touch()
            ports = fake_trt.with_fp8_caches(ports)
        config = replace(config, ports=ports, backend="tensorrt_rtx", arch="sm120", plugins=with_plugins)
        session = RtxSession(tmp_path / "engine", config, capture=capture)
        return Gpu(session, Engine(config, session), driver, trt)

    return open_it


def tokens_of(engine: Engine, prompts: list[list[int]], **options: Any) -> list[list[int]]:
    return [answer.token_ids for answer in engine.generate(prompts, **options)]


@pytest.mark.parametrize("sampling", [{}, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("eager", [False, True], ids=["late", "early"])
@pytest.mark.parametrize("with_plugins", [True, False], ids=["plugins", "bodies"])
def test_tokens_are_the_cpu_sessions(
    open_gpu: Callable[..., Gpu], built_engine: Path, with_plugins: bool, eager: bool, sampling: dict[str, Any]
) -> None:
    gpu, cpu = open_gpu(with_plugins=with_plugins, eager=eager), Engine.load(built_engine, num_threads=1)
    options: dict[str, Any] = {"max_new_tokens": 40, "stop_token_ids": [11], **sampling}
    assert tokens_of(gpu.engine, PROMPTS, **options) == tokens_of(cpu, PROMPTS, **options)
    # Once more, on what the first call has left in the slots; then narrower steps.
    assert tokens_of(gpu.engine, PROMPTS[::-1], **options) == tokens_of(cpu, PROMPTS[::-1], **options)
    for draft_len in (0, 1):
        narrow = options | {"draft_len": draft_len}
        assert tokens_of(gpu.engine, PROMPTS[:4], **narrow) == tokens_of(cpu, PROMPTS[:4], **narrow)


@pytest.mark.parametrize("with_plugins", [True, False], ids=["plugins", "bodies"])
def test_rings(open_gpu: Callable[..., Gpu], ring_engine: Path, with_plugins: bool) -> None:
    """Answers that go round the drafter's rings several times, drafts as well.

    The first one soon fills its sequence, and the last slot is moved into its place.
    """
    gpu, cpu = open_gpu(ring_engine, with_plugins=with_plugins), Engine.load(ring_engine, num_threads=1)
    prompts = [[*range(40, 90)] * 3, *PROMPTS[:2]]
    answers = [engine.generate(prompts, max_new_tokens=150, stop_token_ids=[]) for engine in (gpu.engine, cpu)]
    for ours, theirs in zip(*answers, strict=True):
        assert ours.token_ids == theirs.token_ids
        assert ours.acceptance_lengths == theirs.acceptance_lengths
    assert [len(answer.token_ids) for answer in answers[0]] == [42, 150, 150]


def test_a_plain_engine(open_gpu: Callable[..., Gpu], build_tiny: Callable[..., Path]) -> None:
    plain = build_tiny(draft=False)
    gpu, cpu = open_gpu(plain), Engine.load(plain, num_threads=1)
    assert tokens_of(gpu.engine, PROMPTS, **SAMPLED) == tokens_of(cpu, PROMPTS, **SAMPLED)


def test_fp8_caches_are_codes_of_one_byte(
    open_gpu: Callable[..., Gpu], build_tiny: Callable[..., Path], make_target: Callable[..., Path], tmp_path: Path
) -> None:
    source = make_target("qwen3", tied=True, eos_token_ids=(EOS_ID,))
    target = quantized_copy(source, tmp_path / "target", "fp8", kv_cache=True)
    built = build_tiny(target=target, max_seq_len=128)
    gpu, cpu = open_gpu(built, fp8_caches=True), Engine.load(built, num_threads=1)
    assert tokens_of(gpu.engine, PROMPTS) == tokens_of(cpu, PROMPTS)


def test_the_other_kind_of_tensorrt(
    open_gpu: Callable[..., Gpu], built_engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rtx_engine, "kind", TensorRt)
    gpu, cpu = open_gpu(), Engine.load(built_engine, num_threads=1)
    assert tokens_of(gpu.engine, PROMPTS, **SAMPLED) == tokens_of(cpu, PROMPTS, **SAMPLED)
    user_managed = trt.ExecutionContextAllocationStrategy.USER_MANAGED
    assert {context.config for context in gpu.trt.contexts} == {user_managed}
    assert any(run.captured for run in gpu.trt.runs)
    with pytest.raises(
        EngineError, match=r"TensorRT [\d.]+ cannot load this engine\. It was built .*\(version unknown\)"
    ):
        open_gpu(invalid=1)


def test_a_sequence_fills_max_seq_len(open_gpu: Callable[..., Gpu]) -> None:
    answers = open_gpu().engine.generate(PROMPTS[:3], max_new_tokens=1000, stop_token_ids=[])
    assert [len(answer.token_ids) + len(prompt) for answer, prompt in zip(answers, PROMPTS, strict=False)] == [192] * 3


def test_a_generation_step_is_captured_once_a_batch_size_and_width(open_gpu: Callable[..., Gpu]) -> None:
    gpu = open_gpu()
    for draft_len in (3, 0):
        gpu.engine.generate(PROMPTS[:3], max_new_tokens=20, stop_token_ids=[], draft_len=draft_len)
    generation = [run for run in gpu.trt.runs if run.profile == 1]
    steps = {(run.shapes["input_ids"], run.context) for run in generation}
    assert {shape for shape, _ in steps} == {(batch, width) for batch in (1, 2, 3) for width in (4, 1)} & {
        run.shapes["input_ids"] for run in generation
    }
    assert len(steps) == len({shape for shape, _ in steps})  # a context each
    assert (3, 4) in {shape for shape, _ in steps}
    for step in steps:
        captured = [run.captured for run in generation if (run.shapes["input_ids"], run.context) == step]
        assert captured in ([False], [False, True])  # as it is once, then captured; the rest is launches
    assert gpu.driver.calls["cuGraphInstantiate"] == sum(run.captured for run in generation)
    assert gpu.driver.calls["cuGraphLaunch"] > 10


def test_shapes_and_addresses_of_a_step_are_constant(open_gpu: Callable[..., Gpu]) -> None:
    gpu = open_gpu(capture=False)
    gpu.engine.generate(PROMPTS[:3], max_new_tokens=30, stop_token_ids=[])
    generation = [run for run in gpu.trt.runs if run.profile == 1 and run.shapes["input_ids"] == (3, 4)]
    assert len(generation) > 5
    assert all(run == generation[0] for run in generation)
    assert gpu.driver.calls["cuGraphLaunch"] == 0
    for run in gpu.trt.runs:
        caches = {name: address for name, address in run.addresses.items() if name.startswith(("target", "draft"))}
        assert all(caches[name] == caches[name.removesuffix(".out")] for name in caches)


def test_capture_can_be_switched_off(open_gpu: Callable[..., Gpu], monkeypatch: pytest.MonkeyPatch) -> None:
    captured = open_gpu()
    tokens = tokens_of(captured.engine, PROMPTS[:4], **SAMPLED)
    monkeypatch.setenv("DFLASH_CUDA_GRAPH", "0")
    plain = open_gpu()
    assert tokens_of(plain.engine, PROMPTS[:4], **SAMPLED) == tokens
    assert (captured.driver.calls["cuGraphLaunch"] > 0, plain.driver.calls["cuGraphLaunch"]) == (True, 0)


def test_an_engine_that_cannot_be_captured_runs_as_it_is(
    open_gpu: Callable[..., Gpu], caplog: pytest.LogCaptureFixture
) -> None:
    gpu = open_gpu(capturable=False)
    assert tokens_of(gpu.engine, PROMPTS[:4], **SAMPLED) == tokens_of(open_gpu().engine, PROMPTS[:4], **SAMPLED)
    assert gpu.driver.calls["cuGraphLaunch"] == 0
    assert "cannot be captured in a CUDA graph" in caplog.text


def test_the_host_waits_for_nothing_but_late_results(open_gpu: Callable[..., Gpu]) -> None:
    gpu = open_gpu()
    gpu.engine.generate(PROMPTS[:3], max_new_tokens=8, stop_token_ids=[])
    session, driver = gpu.session, gpu.driver
    session.open_slot(0, GREEDY)
    session.prompt(0, np.array([3, 4, 5]))
    session.collect()
    for _ in range(3):
        session.generate(1, 4)
        session.collect()
    before, driver.to_host = driver.calls.copy(), []
    session.generate(1, 4)
    for _ in range(20):
        session.generate(1, 4)
        session.collect()
    session.collect()
    calls = driver.calls - before
    # A step: one launch, one copy of all its results, one mark; its results: one wait.
    assert calls == dict.fromkeys(("cuGraphLaunch", "cuMemcpyAsync", "cuEventRecord", "cuEventSynchronize"), 21)
    assert len(set(driver.to_host)) == 1
    assert max(driver.to_host) < 2048


def test_what_is_under_way_is_not_read(open_gpu: Callable[..., Gpu]) -> None:
    gpu = open_gpu(eager=False)
    session = gpu.session
    session.open_slot(0, GREEDY)
    session.prompt(0, np.array([3, 4, 5]))
    session.generate(1, 4)
    first, second = session.collect(), session.collect()
    cpu_first = open_gpu(eager=True).engine.generate([[3, 4, 5]], max_new_tokens=8, stop_token_ids=[])[0].token_ids
    both = [*first.new_ids[0, :1].tolist(), *second.new_ids[0, : second.num_new[0]].tolist()]
    assert both == cpu_first[: len(both)]


@pytest.mark.parametrize("route", [(2, 0), (2, 1, 0)], ids=["once", "twice"])
def test_a_moved_slot_goes_on_as_before(open_gpu: Callable[..., Gpu], route: tuple[int, ...]) -> None:
    tokens = []
    sampling = SlotSampling(0.9, 0.95, 20, np.random.default_rng(0).random(100, np.float32))
    for stations in ((0,), route):
        session = open_gpu().session
        for slot in range(3):
            session.open_slot(slot, sampling)
            session.prompt(slot, np.arange(3, 10 if slot == stations[0] else 5))
            session.collect()
        for source, target in pairwise(stations):
            session.move_slot(source, target)
        tokens.append([])
        for _ in range(8):
            session.generate(1, 4)
            result = session.collect()
            tokens[-1] += result.new_ids[0, : result.num_new[0]].tolist()
    assert tokens[0] == tokens[1]
    assert len(tokens[0]) >= 8


def test_slots_opened_one_after_another_have_their_own_sampling(open_gpu: Callable[..., Gpu]) -> None:
    draws = np.random.default_rng(0)
    samplings = [SlotSampling(2.0, 1.0, 0, draws.random(60, np.float32)) for _ in range(3)]
    tokens = []
    for slots in ((0, 1, 2), (0,), (1,), (2,)):
        session = open_gpu().session
        for slot in slots:
            session.open_slot(slot, samplings[slot])
        for slot in slots:
            session.prompt(slot, np.array([3, 4]))
            session.collect()
        if len(slots) == 1 and slots != (0,):
            session.move_slot(slots[0], 0)
        rows: list[list[int]] = [[] for _ in slots]
        for _ in range(6):
            session.generate(len(slots), 1)
            result = session.collect()
            for row, new in zip(rows, result.new_ids[:, 0].tolist(), strict=True):
                row.append(new)
        tokens.append(rows)
    assert tokens[0] == [rows[0] for rows in tokens[1:]]
    assert len({tuple(row) for row in tokens[0]}) == 3


def test_a_closed_stream_leaves_nothing_to_the_next(open_gpu: Callable[..., Gpu], built_engine: Path) -> None:
    gpu, cpu = open_gpu(), Engine.load(built_engine, num_threads=1)
    stream = gpu.engine.stream(PROMPTS[:3], stop_token_ids=[])
    for _ in range(5):
        next(stream)
    stream.close()
    assert gpu.session._under_way
    assert tokens_of(gpu.engine, PROMPTS[3:]) == tokens_of(cpu, PROMPTS[3:])


def test_memory_goes_back_with_the_session(open_gpu: Callable[..., Gpu]) -> None:
    gpu = open_gpu()
    gpu.engine.generate(PROMPTS[:2], max_new_tokens=8)
    gpu.engine.generate(PROMPTS[:1], max_new_tokens=2)
    driver, total = gpu.driver, gpu.driver._total
    assert driver.free < total
    del gpu
    assert driver.free == total


def test_the_stand_ins_have_nothing_that_the_real_ones_lack(open_gpu: Callable[..., Gpu]) -> None:
    """A call of a name that does not exist must not pass because the stand-in has it."""
    context = open_gpu().trt.contexts[0]
    used: dict[type, set[str]] = {
        trt.Runtime: {*vars(fake_trt.FakeRuntime)},
        trt.ICudaEngine: {*vars(fake_trt.FakeEngine)},
        trt.IExecutionContext: {*vars(fake_trt.FakeContext)},
        trt.IRuntimeConfig: {*vars(context.config)},
    }
    for kind, names in used.items():
        assert {name for name in names if not name.startswith("_")} <= {*dir(kind)}, kind
    assert {name for name in vars(FakeDriver) if name.startswith("cu")} <= {*dir(real)}
    assert context.config.cuda_graph_strategy in trt.CudaGraphStrategy.__members__.values()


class TestMisuse:
    """What a caller may not do is said, before anything is written where it should not be."""

    def test_more_steps_than_are_looked_ahead(self, open_gpu: Callable[..., Gpu]) -> None:
        session = open_gpu().session
        session.open_slot(0, GREEDY)
        session.prompt(0, np.array([3]))
        session.generate(1, 4)
        with pytest.raises(EngineError, match=r"2 steps are under way, and no more may be: collect one first"):
            session.generate(1, 4)

    def test_nothing_to_collect(self, open_gpu: Callable[..., Gpu]) -> None:
        with pytest.raises(EngineError, match="no step is under way whose result could be collected"):
            open_gpu().session.collect()

    def test_a_slot_is_moved_or_opened_during_a_step(self, open_gpu: Callable[..., Gpu]) -> None:
        session = open_gpu().session
        session.open_slot(0, GREEDY)
        session.prompt(0, np.array([3]))
        with pytest.raises(EngineError, match="a step is under way while a slot is moved"):
            session.move_slot(0, 1)
        with pytest.raises(EngineError, match="a step is under way while a slot is opened"):
            session.open_slot(1, GREEDY)

    def test_a_prompt_in_a_slot_that_is_not_open(self, open_gpu: Callable[..., Gpu]) -> None:
        with pytest.raises(EngineError, match="slot 1 has a prompt and was not opened"):
            open_gpu().session.prompt(1, np.array([3]))

    def test_steps_beyond_the_caches(self, open_gpu: Callable[..., Gpu]) -> None:
        """Steps that are under way count as if they had accepted everything."""
        session = open_gpu().session
        session.open_slot(0, GREEDY)
        session.prompt(0, np.array([3]))
        session.collect()
        session._lengths[0] = session._config.cache_len - 11
        session.generate(1, 4)
        with pytest.raises(EngineError, match=r"a step of width 4 at position .* cache rows"):
            session.generate(1, 4)


class TestFailures:
    """Every failure of the driver and of TensorRT is an EngineError that says what, and what to do."""

    def test_no_driver(self, open_gpu: Callable[..., Gpu], monkeypatch: pytest.MonkeyPatch) -> None:
        def missing(*_: Any) -> None:
            raise RuntimeError("libcuda.so.1 is not here")

        monkeypatch.setattr(FakeDriver, "cuInit", missing)
        with pytest.raises(EngineError, match=r"there is no NVIDIA driver on this machine \(libcuda.*doctor"):
            open_gpu()

    def test_no_gpu(self, open_gpu: Callable[..., Gpu], monkeypatch: pytest.MonkeyPatch) -> None:
        status = real.CUresult.CUDA_ERROR_NO_DEVICE
        monkeypatch.setattr(FakeDriver, "cuInit", lambda *_: (status,))
        with pytest.raises(EngineError, match=r"cuInit: .* CUDA_ERROR_NO_DEVICE \(100: .*\)\. No GPU is visible"):
            open_gpu()

    def test_too_little_memory(self, open_gpu: Callable[..., Gpu]) -> None:
        words = r"GPU memory for 3 × \S+ could not be had \(CUDA_ERROR_OUT_OF_MEMORY .*--max-batch-size"
        with pytest.raises(EngineError, match=words):
            open_gpu(memory=40_000)

    def test_an_engine_for_another_gpu(self, open_gpu: Callable[..., Gpu]) -> None:
        kinds = rtx_engine.trt.EngineInvalidityDiagnostics
        words = (
            r"rank0\.engine: TensorRT-RTX [\d.]+ cannot load this engine \(unsupported cc\)\. It was built for sm120 "
            r"with TensorRT-RTX 1\.6\.0, and this GPU is sm90\.(.|\n)*no such engine here"
        )
        with pytest.raises(EngineError, match=words):
            open_gpu(invalid=int(kinds.UNSUPPORTED_CC.value), capability=(9, 0))

    def test_an_engine_of_another_version(self, open_gpu: Callable[..., Gpu]) -> None:
        kinds = rtx_engine.trt.EngineInvalidityDiagnostics
        with pytest.raises(EngineError, match=r"\(version mismatch\).*, or pip install tensorrt-rtx-cu13==1\.6\.0"):
            open_gpu(invalid=int(kinds.VERSION_MISMATCH.value))

    def test_a_kernel_that_fails(self, open_gpu: Callable[..., Gpu]) -> None:
        gpu = open_gpu()
        gpu.driver.fail["cuEventSynchronize"] = real.CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
        words = r"cuEventSynchronize: .* CUDA_ERROR_ILLEGAL_ADDRESS \(700.*A kernel is at fault"
        with pytest.raises(EngineError, match=words):
            gpu.engine.generate([[3]])

    def test_a_refused_shape(self, open_gpu: Callable[..., Gpu]) -> None:
        session = open_gpu().session
        session.open_slot(0, GREEDY)
        session.prompt(0, np.arange(8))
        session.collect()
        with pytest.raises(EngineError, match=r"refuses shape \(1, 5\) of input_ids:\n  shape .* is outside"):
            session.generate(1, 5)
        session.generate(1, 4)  # what failed has left nothing under way
        session.collect()

    def test_a_graph_that_cannot_be_captured_after_all(self, open_gpu: Callable[..., Gpu]) -> None:
        gpu = open_gpu()
        gpu.session.open_slot(0, GREEDY)
        gpu.session.prompt(0, np.array([3]))
        gpu.session.collect()
        gpu.session.generate(1, 4)
        gpu.trt.contexts[-1]._settled = False
        with pytest.raises(EngineError, match=r"refuses the step:\n  memory would have to be allocated now"):
            gpu.session.generate(1, 4)
        assert gpu.driver.captured is None
        gpu.session.discard()
