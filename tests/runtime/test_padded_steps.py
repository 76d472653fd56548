"""Decode steps of few batch sizes: captured when a session opens, padded when they are used."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorrt_rtx")

from tests.fixtures.quantized import quantized_copy
from tests.fixtures.tiny_hybrid import tiny_hybrid
from tests.runtime.fake_gpu import GREEDY, SAMPLED, Gpu, open_gpu, tokens_of
from trtllm_dflash.engine_dir.batch_ladder import BatchLadder
from trtllm_dflash.engine_dir.io_tensors import IoTensor
from trtllm_dflash.engine_dir.spare_states import SpareStates
from trtllm_dflash.errors import EngineError
from trtllm_dflash.hardware.cuda import Cuda
from trtllm_dflash.options.sampling import SamplingParams
from trtllm_dflash.runtime.engine import Engine
from trtllm_dflash.runtime.preprocess import make_requests
from trtllm_dflash.runtime.scheduler import Scheduler

__all__ = ["open_gpu"]  # a fixture
SLOTS = 7  # three, five and six that decode are padded
SHORT = [[3, 4, 5], [7, 8], [9, 9, 9, 9]]
LONG = [*range(20, 90)] * 2  # round every ring
# What may not be called while clients wait.
AT_LOAD = ("cuGraphInstantiate", "cuStreamBeginCapture", "cuMemAlloc", "cuMemAllocHost")


@pytest.fixture(scope="module")
def hybrid(build_tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tiny_hybrid(tmp_path_factory.mktemp("hybrid"), "qwen3_5", sizes={"layers": 5})
    return build_tiny(target=target, max_batch_size=SLOTS)


@pytest.fixture(scope="module")
def rings(build_tiny: Callable[..., Path], make_target: Callable[..., Path]) -> Path:
    target = make_target("mistral", tied=True)
    return build_tiny(target=target, max_batch_size=SLOTS, max_num_tokens=16)


@pytest.fixture(scope="module")
def fp8_caches(
    build_tiny: Callable[..., Path],
    make_target: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    source = make_target("qwen3", tied=True)
    target = tmp_path_factory.mktemp("fp8") / "target"
    return build_tiny(
        target=quantized_copy(source, target, "fp8", kv_cache=True), max_batch_size=SLOTS
    )


@pytest.fixture(params=["hybrid", "rings", pytest.param("fp8_caches", marks=pytest.mark.slow)])
def source(request: pytest.FixtureRequest) -> tuple[Path, bool]:
    """Return a CPU engine's directory, and whether the GPU's has FP8 caches."""
    return request.getfixturevalue(request.param), request.param == "fp8_caches"


@pytest.mark.parametrize(
    ("slots", "rungs", "most_padded"),
    [
        (1, (1,), 0),
        (2, (1, 2), 0),
        (3, (1, 2, 3), 0),
        (4, (1, 2, 4), 1),
        (7, (1, 2, 4, 7), 2),
        (16, (1, 2, 4, 8, 16), 7),
    ],
)
def test_ladder(slots: int, rungs: tuple[int, ...], most_padded: int) -> None:
    ladder = BatchLadder(slots)
    assert ladder.rungs == rungs
    assert ladder.most_padded == most_padded
    assert {count: ladder.rung(count) for count in rungs} == {size: size for size in rungs}
    for count in range(1, slots + 1):
        assert 0 <= ladder.rung(count) - count <= most_padded


def test_nothing_is_captured_while_decoding(
    open_gpu: Callable[..., Gpu], source: tuple[Path, bool]
) -> None:
    """Requests come and go, so that every number of slots decodes beside open prompts."""
    directory, fp8 = source
    gpu, cpu = (
        open_gpu(directory, fp8_caches=fp8, warm_up=True, memory=2 << 30),
        Engine.load(directory, num_threads=1),
    )
    assert all(not array.any() for array in _arrays(gpu, range(SLOTS)).values())
    calls, contexts = gpu.driver.calls.copy(), len(gpu.trt.contexts)
    runs = [run for run in gpu.trt.runs if run.profile == 1]
    prompts = [*SHORT, LONG[:23], [6], LONG[:9], [5] * 5]
    options: dict[str, Any] = {"max_tokens": 14, "stop_token_ids": [], **SAMPLED}
    with _batches(gpu) as batches:
        tokens = _staggered(gpu, prompts, options)
    assert tokens == tokens_of(cpu, prompts, **options)
    assert {5, 6} < batches
    plain = options | {"draft_len": 0}
    assert _staggered(gpu, prompts, plain) == tokens_of(cpu, prompts, **plain)
    assert [run for run in gpu.trt.runs if run.profile == 1] == runs
    assert len(gpu.trt.contexts) == contexts
    assert {name: gpu.driver.calls[name] for name in AT_LOAD} == {
        name: calls[name] for name in AT_LOAD
    }


def _staggered(gpu: Gpu, prompts: list[list[int]], options: dict[str, Any]) -> list[list[int]]:
    """Answer prompts that arrive one by one, each in chunks between decode steps."""
    config = gpu.engine.config
    requests = make_requests(prompts, SamplingParams(**options), config)
    scheduler = Scheduler(gpu.session, vocab_size=config.vocab_size, prompt_tokens_per_step=8)
    scheduler.discard()
    for request in requests:
        scheduler.add(request)
        scheduler.step()
    while scheduler.busy:
        scheduler.step()
    return [request.output_ids for request in requests]


@contextmanager
def _batches(gpu: Gpu) -> Iterator[set[int]]:
    """Collect how many slots decode together."""
    found: set[int] = set()
    decode = gpu.session.decode

    def recorded(count: int, width: int, *, draft: bool) -> None:
        found.add(count)
        decode(count, width, draft=draft)

    gpu.session.decode = recorded  # type: ignore[method-assign]
    yield found
    gpu.session.decode = decode  # type: ignore[method-assign]


def test_padded_step_leaves_prompts_as_they_are(
    open_gpu: Callable[..., Gpu], source: tuple[Path, bool]
) -> None:
    """Slot 3 has a half, then a whole prompt, while the three before it decode."""
    directory, fp8 = source
    gpu, cpu = open_gpu(directory, fp8_caches=fp8), Engine.load(directory, num_threads=1)
    session = gpu.session
    prompts = [*SHORT, LONG]
    tokens = [_prefilled(gpu, slot, prompt) for slot, prompt in enumerate(SHORT)]
    session.open_slot(3, GREEDY)
    half = 75
    _prefill(gpu, 3, LONG[:half])
    _check_kept(gpu, tokens, past_len=half)
    tokens.append(_prefill(gpu, 3, LONG[half:]))
    _check_kept(gpu, tokens[:3], past_len=len(LONG))
    for _ in range(3):
        _decode(gpu, tokens)
    assert {run.shapes["input_ids"][0] for run in gpu.trt.runs if run.profile == 1} == {4}
    for prompt, ours in zip(prompts, tokens, strict=True):
        expected = cpu.generate([prompt], max_tokens=len(ours), stop_token_ids=[])[0]
        assert ours == expected.token_ids


def _prefilled(gpu: Gpu, slot: int, prompt: list[int]) -> list[int]:
    gpu.session.open_slot(slot, GREEDY)
    return _prefill(gpu, slot, prompt)


def _prefill(gpu: Gpu, slot: int, tokens: list[int]) -> list[int]:
    widest = gpu.session.max_num_tokens
    for begin in range(0, len(tokens), widest):
        gpu.session.prefill(slot, np.array(tokens[begin : begin + widest]))
        result = gpu.session.collect()
    return [int(result.new_ids[0, 0])]


def _decode(gpu: Gpu, tokens: list[list[int]]) -> None:
    gpu.session.decode(len(tokens), gpu.session._config.block_size)
    result = gpu.session.collect()
    for slot, row in enumerate(tokens):
        row += result.new_ids[slot, : result.num_new[slot]].tolist()


def _check_kept(gpu: Gpu, tokens: list[list[int]], past_len: int) -> None:
    """Decode in the first slots, and check that slot 3 has all of value that it had."""
    before = _arrays(gpu, [3])
    for _ in range(2):
        _decode(gpu, tokens)
    after = _arrays(gpu, [3])
    for tensor in gpu.session._config.io:
        if tensor.name in before:
            rows = _rows_of_value(gpu, tensor, past_len)
            ours, theirs = after[tensor.name], before[tensor.name]
            if rows is not None:
                ours, theirs = ours[:, :, rows], theirs[:, :, rows]
            assert np.array_equal(ours, theirs), tensor.name


def _rows_of_value(gpu: Gpu, tensor: IoTensor, past_len: int) -> np.ndarray | None:
    """Return the rows of a cache that later steps read; None: all of the array."""
    if not tensor.cache or tensor.recurrent:
        return None
    config = gpu.session._config
    length = int(tensor.shape[2])
    positions = np.arange(past_len)
    if length < config.cache_len:  # the ring holds a window, and what a step writes
        written = config.max_num_tokens
        written += config.block_size if tensor.cache == "drafter" else 0
        positions = positions[past_len - (length - written) :]
    return positions % length


def _arrays(gpu: Gpu, slots: Any) -> dict[str, np.ndarray]:
    """Return copies of slots' arrays, in bytes."""
    session, made = gpu.session, {}
    session._cuda.make_current()
    session._cuda.synchronize()
    for tensor in session._config.io:
        if tensor.direction == "input" and session._slots.owns(tensor.name):
            shape = (*map(int, tensor.shape[1:]),)
            rows = []
            for slot in slots:
                address = session._slots.address(tensor.name, slot)
                memory = gpu.driver.view(address, prod(shape) * tensor.item_bytes)
                assert memory is not None
                rows.append(memory.copy().reshape(*shape[:-1], -1) if shape else memory.copy())
            made[tensor.name] = np.stack(rows)
    return made


def test_failed_step_leaves_prompts_as_they_are(
    open_gpu: Callable[..., Gpu], hybrid: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = open_gpu(hybrid)
    for slot, prompt in enumerate([*SHORT, LONG[:9]]):
        _prefilled(gpu, slot, prompt)
    before = _arrays(gpu, [3])

    def fail() -> None:
        session = gpu.session
        for name in ("past_len", "state_len", "next_ids", "target_state.0"):
            session._cuda.clear(session._slots.address(name, 3), 4)
        raise EngineError("half way")

    step = gpu.session._decode_step(4, gpu.session._config.block_size)
    monkeypatch.setattr(step, "_run", fail)
    with pytest.raises(EngineError, match="half way"):
        gpu.session.decode(3, gpu.session._config.block_size)
    after = _arrays(gpu, [3])
    assert all(np.array_equal(array, after[name]) for name, array in before.items())


def test_states_beside_the_slots_are_those_of_the_plan(
    open_gpu: Callable[..., Gpu], hybrid: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session allocates, of recurrent caches, the slots' own and what plans call spare."""
    allocated: dict[str, int] = {}
    allocate = Cuda.allocate

    def noted(cuda: Cuda, nbytes: int, purpose: str) -> int:
        allocated[purpose] = allocated.get(purpose, 0) + nbytes
        return allocate(cuda, nbytes, purpose)

    monkeypatch.setattr(Cuda, "allocate", noted)
    io = open_gpu(hybrid).session._config.io
    states = [tensor for tensor in io if tensor.recurrent and tensor.direction == "input"]
    of_states = sum(allocated[f"{SLOTS} × {tensor.name}"] for tensor in states)
    of_states += allocated["prompts beside padded steps"]
    spare = SpareStates.of(io)
    assert of_states == SLOTS * spare.all_bytes + spare.nbytes(SLOTS)
    assert spare.unaligned_bytes > 0
    assert allocated["prompts beside padded steps"] == 2 * spare.all_bytes > 0


def test_slots_that_have_ended_are_emptied(open_gpu: Callable[..., Gpu], rings: Path) -> None:
    """Their lengths do not grow, however long others decode."""
    gpu = open_gpu(rings)
    tokens = [_prefilled(gpu, slot, prompt) for slot, prompt in enumerate([*SHORT, LONG[:9]])]
    _decode(gpu, tokens)
    for _ in range(3):
        _decode(gpu, tokens[:3])
    assert not _arrays(gpu, [3])["past_len"].any()


def test_load_says_what_took_how_long(
    open_gpu: Callable[..., Gpu], built_engine: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "trtllm_dflash")
    seconds = r"engine \d+\.\d s, caches \d+\.\d s, contexts \d+\.\d s"
    for warm_up, more in ((True, r", warm-up \d+\.\d s, kept kernels \d+\.\d s"), (False, "")):
        caplog.clear()
        open_gpu(built_engine, warm_up=warm_up)
        (line,) = (text for text in caplog.messages if text.startswith("loaded "))
        assert re.fullmatch(rf"loaded \S+: {seconds}{more}", line), line
