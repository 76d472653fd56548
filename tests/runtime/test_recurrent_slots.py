"""Both sessions on hybrid targets: states of slots that move, that are used again, that end.

Drafts come from the answer itself and are wrong from a random place on. So steps leave accepted
drafts open: they are in the window and not yet in the state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fixtures.tiny_hybrid import quantized_hybrid, tiny_hybrid
from tests.fixtures.tiny_models import BLOCK, VOCAB
from tests.runtime.fake_gpu import GREEDY, SAMPLED, Gpu, open_gpu, tokens_of
from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.runtime.engine import Engine
from trtllm_dflash.runtime.sessions.base import Session
from trtllm_dflash.runtime.sessions.ort import OrtSession

__all__ = ["open_gpu"]  # a fixture

PROMPTS = [[3, 4, 5], [1] * 11, [7, 8], [9, 9, 9, 9], [6], list(range(20, 50)), [96, 96, 3]]
LENGTH = 28  # tokens of an answer
SLOTS = 3


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a Qwen3.5 of four gated delta nets and a full layer."""
    directory = tmp_path_factory.mktemp("hybrid")
    return tiny_hybrid(directory, "qwen3_5", sizes={"layers": 5}, config={"eos_token_id": 95})


@pytest.fixture(scope="module")
def engine_dir(build_tiny: Callable[..., Path], target: Path) -> Path:
    return build_tiny(target=target, max_batch_size=SLOTS)


@pytest.fixture(scope="module")
def answers(build_tiny: Callable[..., Path], target: Path) -> list[list[int]]:
    """Return the answer to each prompt, one token a step and one sequence at a time."""
    engine = Engine.load(build_tiny(target=target, draft=False), num_threads=1)
    return [
        engine.generate([prompt], max_tokens=LENGTH, stop_token_ids=[])[0].token_ids
        for prompt in PROMPTS
    ]


class Slots:
    """A session's slots as arrays, on either kind of session."""

    def __init__(self, session: Any, gpu: Gpu | None) -> None:
        self.session: Session = session
        self._memory = session._slots
        self._gpu = gpu
        self._io = {tensor.name: tensor for tensor in session._config.io}

    def array(self, name: str, slot: int) -> np.ndarray:
        """Return the slot's own array, which can be written."""
        if self._gpu is None:
            found: np.ndarray = self._memory[name][slot]
            return found
        self._gpu.session._cuda.make_current()
        self._gpu.session._cuda.synchronize()
        tensor = self._io[name]
        shape = tuple(map(int, tensor.shape[1:]))
        memory = self._gpu.driver.view(self._memory.address(name, slot), tensor.slot_bytes)
        assert memory is not None
        return memory.view(tensor.dtype).reshape(shape)

    def recurrent(self, slot: int) -> dict[str, np.ndarray]:
        """Return the slot's windows and states."""
        names = [name for name, tensor in self._io.items() if tensor.recurrent]
        return {name: self.array(name, slot) for name in names if not name.endswith(".out")}


@pytest.fixture(params=["cpu", "gpu"])
def open_slots(
    request: pytest.FixtureRequest, engine_dir: Path, open_gpu: Callable[..., Gpu]
) -> Callable[[], Slots]:
    """Return a function that opens the engine in a CPU session, or in one on a fake GPU."""

    def make() -> Slots:
        if request.param == "cpu":
            config = EngineConfig.load(engine_dir)
            return Slots(OrtSession(engine_dir, config, num_threads=1), None)
        gpu = open_gpu(engine_dir)
        return Slots(gpu.session, gpu)

    return make


class Oracle:
    """Sequences whose answers are known, by slot; every step drafts from them."""

    def __init__(self, slots: Slots, seed: int) -> None:
        self.slots = slots
        self._draws = np.random.default_rng(seed)
        self._answers: list[list[int]] = []
        self._done: list[int] = []
        self.accepted = 0

    def open(self, prompt: Sequence[int], answer: list[int], chunk: int) -> None:
        """Prefill the prompt in the next slot, in chunks."""
        slot = len(self._answers)
        session = self.slots.session
        session.open_slot(slot, GREEDY)
        for first in range(0, len(prompt), chunk):
            session.prefill(slot, np.array(prompt[first : first + chunk]))
            result = session.collect()
        assert result.new_ids[0, 0] == answer[0]
        self._answers.append(answer)
        self._done.append(1)

    def step(self) -> None:
        """Decode all slots once, with drafts of which a random number is right."""
        rights = []
        for slot, answer in enumerate(self._answers):
            done = self._done[slot]
            drafts = np.array(answer[done : done + BLOCK - 1])
            right = int(self._draws.integers(0, BLOCK))
            drafts[right:] = (drafts[right:] + 1) % VOCAB
            self.slots.array("next_ids", slot)[1:] = drafts
            rights.append(right)
        session = self.slots.session
        session.decode(len(rights), BLOCK)
        result = session.collect()
        assert result.num_new.tolist() == [right + 1 for right in rights]
        for slot, right in enumerate(rights):
            done = self._done[slot]
            expected = self._answers[slot][done : done + right + 1]
            assert result.new_ids[slot, : right + 1].tolist() == expected
            self._done[slot] += right + 1
            self.accepted += right
        assert result.next_len is not None
        assert result.next_state_len is not None
        assert (result.next_len - result.next_state_len).tolist() == rights

    def end(self, slot: int) -> None:
        """End a slot's sequence; the last slot takes its place."""
        last = len(self._answers) - 1
        if slot != last:
            self.slots.session.move_slot(last, slot)
            self._answers[slot], self._done[slot] = self._answers[last], self._done[last]
        del self._answers[last], self._done[last]

    @property
    def goes_on(self) -> bool:
        """Tell whether every slot has tokens left to draft from."""
        pairs = zip(self._answers, self._done, strict=True)
        return all(done + BLOCK <= len(answer) for answer, done in pairs)


@pytest.mark.parametrize("chunk", [1, 3, 8])
def test_accepted_drafts_enter_the_state(
    open_slots: Callable[[], Slots], answers: list[list[int]], chunk: int
) -> None:
    oracle = Oracle(open_slots(), seed=chunk)
    for index in (0, 5, 6):
        oracle.open(PROMPTS[index], answers[index], chunk)
    while oracle.goes_on:
        oracle.step()
    assert oracle.accepted > 15


@pytest.mark.slow
def test_slots_move_while_others_end(
    open_slots: Callable[[], Slots], answers: list[list[int]]
) -> None:
    """The last slot takes the place of one that ends, with its accepted drafts still open."""
    for seed in range(2):
        oracle = Oracle(open_slots(), seed)
        for index in (5, 1, 3):
            oracle.open(PROMPTS[index], answers[index], chunk=8)
        for ending in (0, 0):
            for _ in range(3):
                oracle.step()
            oracle.end(ending)
        while oracle.goes_on:
            oracle.step()


def test_a_moved_slot_takes_states_and_windows_whole(
    open_slots: Callable[[], Slots], answers: list[list[int]]
) -> None:
    """Two positions are in use; of keys as many rows move, of states all."""
    slots = open_slots()
    oracle = Oracle(slots, seed=0)
    for index in (1, 5, 2):
        oracle.open(PROMPTS[index], answers[index], chunk=8)
    before = {name: array.copy() for name, array in slots.recurrent(2).items()}
    for array in slots.recurrent(0).values():
        array[:] = np.nan
    slots.session.move_slot(2, 0)
    for name, array in slots.recurrent(0).items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)
    assert slots.array("state_len", 0) == slots.array("past_len", 0) == 2


def test_a_slot_is_opened_clean(
    open_slots: Callable[[], Slots], answers: list[list[int]]
) -> None:
    """What a sequence has left in a slot, and any garbage there, is nothing to the next one."""
    slots = open_slots()
    for garbage in (None, np.nan, np.inf, 1e30):
        oracle = Oracle(slots, seed=1)
        for index in range(SLOTS):
            if garbage is not None:
                for array in slots.recurrent(index).values():
                    array[:] = garbage
            oracle.open(PROMPTS[index], answers[index], chunk=8)
        for _ in range(5):
            oracle.step()


@pytest.mark.parametrize(
    "sampling", [{}, pytest.param(SAMPLED, marks=pytest.mark.slow)], ids=["greedy", "sampled"]
)
@pytest.mark.parametrize(
    "batch", [1, *(pytest.param(batch, marks=pytest.mark.slow) for batch in (2, 3))]
)
def test_batch_equals_alone_equals_plain(
    engine_dir: Path, sampling: dict[str, Any], batch: int
) -> None:
    engine = Engine.load(engine_dir, num_threads=1)
    options: dict[str, Any] = {"max_tokens": LENGTH, "stop_token_ids": [11], **sampling}
    prompts = PROMPTS[:batch] if batch < SLOTS else PROMPTS
    together = engine.generate(prompts, **options)
    plain = engine.generate(prompts, draft=False, **options)
    for prompt, batched, undrafted in zip(prompts, together, plain, strict=True):
        (alone,) = engine.generate([prompt], **options | {"seed": batched.seed})
        assert batched.token_ids == alone.token_ids == undrafted.token_ids
        assert batched.acceptance_lengths == alone.acceptance_lengths


@pytest.mark.slow
@pytest.mark.parametrize(
    ("with_plugins", "eager"),
    [(True, False), (False, True)],
    ids=["plugins-late", "bodies-early"],
)
def test_tokens_are_the_cpu_sessions(
    open_gpu: Callable[..., Gpu], engine_dir: Path, with_plugins: bool, eager: bool
) -> None:
    """A step is in flight while the one before is read, and ended sequences run along."""
    gpu = open_gpu(engine_dir, with_plugins=with_plugins, eager=eager)
    cpu = Engine.load(engine_dir, num_threads=1)
    for options in ({}, SAMPLED, {"draft_len": 1}):
        chosen: dict[str, Any] = {"max_tokens": 16, "stop_token_ids": [11], **options}
        expected = tokens_of(cpu, PROMPTS, **chosen)
        assert tokens_of(gpu.engine, PROMPTS, **chosen) == expected


@pytest.mark.slow
def test_fp8_caches_are_packed_and_states_are_not(
    open_gpu: Callable[..., Gpu], build_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    target = quantized_hybrid(tmp_path / "target", "qwen3_5", "fp8", kv_cache=True)
    built = build_tiny(target=target, max_batch_size=SLOTS)
    gpu, cpu = open_gpu(built, fp8_caches=True), Engine.load(built, num_threads=1)
    types = {tensor.dtype for tensor in gpu.session._config.io if tensor.recurrent}
    assert types == {"float32"}
    options: dict[str, Any] = {"max_tokens": 12, "stop_token_ids": []}
    assert tokens_of(gpu.engine, PROMPTS, **options) == tokens_of(cpu, PROMPTS, **options)


@pytest.mark.slow
def test_a_closed_stream_leaves_nothing_to_the_next(
    open_gpu: Callable[..., Gpu], engine_dir: Path, answers: list[list[int]]
) -> None:
    gpu = open_gpu(engine_dir)
    stream = gpu.engine.stream(PROMPTS[:3], stop_token_ids=[])
    for _ in range(5):
        next(stream)
    stream.close()
    found = tokens_of(gpu.engine, PROMPTS[3:], max_tokens=LENGTH, stop_token_ids=[])
    assert found == answers[3:]
