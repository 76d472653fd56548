"""GPU sessions: TensorRT, of either kind, over state that stays on the device, one step ahead of
the host.

    host     prompt chunk ─copy─┐                     ┌─ results of step n, while n+1 runs ─► tokens
    stream   ───────────────────┴► prompt ► step 0 ► step 1 ► …
    device   next_ids ─► input_ids ► engine ► next_ids, next_len ─► past_len      (one CUDA graph a batch size)

All caches are allocated once, each with one address for input and output. A prompt runs in its
slot's part of them, a generation step in slots 0 … count - 1. From the second step of a batch size
on, everything that a step does on the device is one captured graph, whose shapes and addresses
never change; the host launches it and copies the results of the step before.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trtllm_dflash.engine_dir import manifest
from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.engine_dir.files import ENGINE_FILE
from trtllm_dflash.engine_dir.io_tensors import BATCH, CONTEXT, ROWS, WIDTH, IoTensor
from trtllm_dflash.errors import EngineError
from trtllm_dflash.hardware import devices
from trtllm_dflash.hardware.cuda import Cuda
from trtllm_dflash.runtime.env import CUDA_GRAPH, env_flag
from trtllm_dflash.runtime.sessions.base import Int64, SlotSampling, StepResult, context_length
from trtllm_dflash.runtime.sessions.packed_buffer import PackedBuffer
from trtllm_dflash.runtime.sessions.trt_engine import (
    CONTEXT_PROFILE,
    GENERATION_PROFILE,
    RtxContext,
    TrtEngine,
)
from trtllm_dflash.runtime.sessions.trt_slots import TrtSlots

_LOG = logging.getLogger(__name__)
_ID_BYTES = 8


class TrtSession:
    """A `Session` on one GPU."""

    lookahead = 1

    def __init__(
        self,
        directory: Path,
        config: EngineConfig,
        *,
        num_threads: int | None = None,  # noqa: ARG002 - of CPU sessions
        capture: bool | None = None,
    ) -> None:
        """Load `directory`/rank0.engine and allocate all slots' caches.

        `capture`: whether steps are captured in CUDA graphs; None asks DFLASH_CUDA_GRAPH, on by
        default.
        """
        self._config = config
        self._capture = env_flag(CUDA_GRAPH, default=True) if capture is None else capture
        self._cuda = Cuda(devices.first_gpu_index(config.gpu_arch))
        self._engine = TrtEngine(
            directory / ENGINE_FILE,
            config,
            self._cuda,
            versions=manifest.load(directory)["versions"],
        )
        self._slots = TrtSlots(config, self._cuda)
        self._buffers = _Buffers(config, self._cuda)
        self._sampling: list[SlotSampling | None] = [None] * config.max_batch_size
        self._lengths = np.zeros(
            config.max_batch_size, np.int32
        )  # positions held, as far as collected
        self._prompt_context = self._engine.context(CONTEXT_PROFILE, fixed_shapes=False)
        self._steps: dict[tuple[int, int], _GenerationStep] = {}
        self._free = deque(
            _InFlightStep(self._buffers, self._cuda) for _ in range(self.lookahead + 1)
        )
        self._under_way: deque[_InFlightStep] = deque()

    @property
    def max_batch_size(self) -> int:
        """How many slots there are."""
        return self._config.max_batch_size

    @property
    def max_num_tokens(self) -> int:
        """The widest step, so the largest prompt chunk."""
        return self._config.max_num_tokens

    def open_slot(self, slot: int, sampling: SlotSampling) -> None:
        """Empty a slot for a new sequence."""
        self._expect_idle("a slot is opened")
        self._slots.open(slot, sampling)
        self._sampling[slot] = sampling
        self._lengths[slot] = 0

    def prefill(self, slot: int, input_ids: Int64) -> None:
        """Put one slot's next tokens [S] behind those that it holds."""
        step = self._next_step(slot, 1, width=len(input_ids), rows=1)
        sampling, past_len = self._sampling[slot], self._reach(slot, 1)
        if sampling is None:
            raise EngineError(
                f"slot {slot} has a prompt and was not opened. The session's caller is at fault."
            )
        chunk = step.prompt
        chunk["num_known"][0], chunk["past_len"][0] = len(input_ids), past_len[0]
        for row in self._config.sampling_inputs:
            chunk[row.name][0] = getattr(sampling, row.name)
        chunk["input_ids"][: len(input_ids)] = input_ids
        buffers = self._buffers
        buffers.send_prompt(step.prompt_memory, len(input_ids))

        addresses = self._addresses(slot) | buffers.prompt_addresses
        sizes = {
            BATCH: 1,
            WIDTH: len(input_ids),
            ROWS: 1,
            CONTEXT: self._context_length(past_len, len(input_ids)),
        }
        self._prompt_context.bind(_shapes(self._config.ports, sizes), addresses)
        self._prompt_context.run()
        self._cuda.copy(self._slots.address("past_len", slot), addresses["next_len"], 4)
        self._cuda.copy(
            self._slots.address("next_ids", slot),
            addresses["next_ids"],
            self._config.block_size * _ID_BYTES,
        )
        self._enqueue_step(step)

    def decode(self, count: int, width: int) -> None:
        """Verify and decide in slots 0 … count - 1."""
        step = self._next_step(0, count, width=width, rows=width)
        self._context_length(self._reach(0, count), width)
        if (count, width) not in self._steps:
            self._steps[count, width] = self._make_step(count, width)
        self._steps[count, width].put_into_stream()
        self._enqueue_step(step)

    def collect(self) -> StepResult:
        """Wait for the oldest step that is under way, and say what it decided."""
        if not self._under_way:
            raise EngineError(
                "no step is under way whose result could be collected. The session's caller is at"
                " fault."
            )
        self._cuda.make_current()
        step = self._under_way.popleft()
        self._free.append(step)
        self._cuda.wait_event(step.event)
        self._lengths[step.first : step.first + step.count] = step.results["next_len"][: step.count]
        new_ids = step.results["new_ids"][: step.count * step.rows].reshape(step.count, step.rows)
        return StepResult(new_ids.copy(), step.results["num_new"][: step.count].copy())

    def move_slot(self, src: int, dst: int) -> None:
        """Copy a slot's state, and of its caches the rows in use."""
        self._expect_idle("a slot is moved")
        self._slots.move(src, dst, int(self._lengths[src]))
        self._sampling[dst] = self._sampling[src]
        self._lengths[dst] = self._lengths[src]

    def discard(self) -> None:
        """Wait for all steps that are under way and forget what they decided."""
        self._cuda.make_current()
        self._cuda.synchronize()
        self._free.extend(self._under_way)
        self._under_way.clear()

    def _expect_idle(self, moment: str) -> None:
        self._cuda.make_current()
        if self._under_way:
            raise EngineError(
                f"a step is under way while {moment}. The session's caller is at fault."
            )

    def _next_step(self, first: int, count: int, *, width: int, rows: int) -> _InFlightStep:
        self._cuda.make_current()
        if not self._free:
            raise EngineError(
                f"{len(self._under_way)} steps are under way, and no more may be: collect one"
                " first. The session's caller is at fault."
            )
        step = self._free[0]
        step.first, step.count, step.width, step.rows = first, count, width, rows
        return step

    def _enqueue_step(self, step: _InFlightStep) -> None:
        """Have the results copied into the step, and mark the place in the stream where they are
        there.
        """
        self._cuda.copy(
            step.results_memory.ctypes.data, self._buffers.results, step.results_memory.nbytes
        )
        self._cuda.record_event(step.event)
        self._under_way.append(self._free.popleft())

    def _reach(self, first: int, count: int) -> NDArray[np.int32]:
        """The most positions that each slot can hold when all that is under way is done; exact for
        prompts.
        """
        reach = self._lengths.copy()
        for step in self._under_way:
            reach[step.first : step.first + step.count] += step.width
        return reach[first : first + count]

    def _context_length(self, past_len: NDArray[np.int32], width: int) -> int:
        return context_length(past_len, width, self._config)

    def _addresses(self, slot: int) -> dict[str, int]:
        """All ports' addresses for a step whose first slot is `slot`; input_ids and num_known are
        as in generation.
        """
        buffers = self._buffers.addresses
        owners = {port.name: port.aliases or port.name for port in self._config.ports}
        return {
            name: self._slots.address(owner, slot) if self._slots.owns(owner) else buffers[owner]
            for name, owner in owners.items()
        }

    def _make_step(self, count: int, width: int) -> _GenerationStep:
        # The context's length is that of the caches, since a captured graph's shapes are constant.
        sizes = {BATCH: count, WIDTH: width, ROWS: width, CONTEXT: self._config.cache_len}
        context, addresses = (
            self._engine.context(GENERATION_PROFILE, fixed_shapes=True),
            self._addresses(0),
        )
        context.bind(_shapes(self._config.ports, sizes), addresses)
        cuda, row, block = self._cuda, width * _ID_BYTES, self._config.block_size * _ID_BYTES

        def step() -> None:
            # next_ids is the step's input and output: the input is copied, since it is still read
            # when the output is already written. So is past_len, which the step reads to its end.
            cuda.copy_rows(
                addresses["input_ids"], row, addresses["next_ids"], block, row_bytes=row, rows=count
            )
            context.run()
            cuda.copy(addresses["past_len"], addresses["next_len"], count * 4)

        return _GenerationStep(context, step, cuda, capture=self._capture)


class _GenerationStep:
    """What generation does for one batch size and width: run as it is the first time, captured from
    the second on.
    """

    def __init__(
        self, context: RtxContext, step: Callable[[], None], cuda: Cuda, *, capture: bool
    ) -> None:
        self._context, self._step, self._cuda = context, step, cuda
        self._to_capture, self._has_run = capture, False

    def put_into_stream(self) -> None:
        # TensorRT settles shapes, memory and kernels in a context's first run: that must not be
        # part of a capture.
        if self._to_capture and self._has_run:
            self._to_capture = False
            if self._context.is_capturable():
                self._step = self._cuda.capture(self._step)
            else:
                _LOG.warning(
                    "this engine's steps cannot be captured in a CUDA graph, so they are slower"
                    " than they may be"
                )
        self._step()
        self._has_run = True


class _Buffers:
    """Device memory of a step that no slot owns."""

    def __init__(self, config: EngineConfig, cuda: Cuda) -> None:
        slots, block = config.max_batch_size, config.block_size
        self._cuda = cuda
        self.results_record = PackedBuffer(
            {
                "new_ids": ("int64", slots * block),
                "num_new": ("int32", slots),
                "next_len": ("int32", slots),
            }
        )
        self.prompt_record = PackedBuffer(
            {
                "num_known": ("int32", 1),
                "past_len": ("int32", 1),
                **{row.name: (row.dtype, 1) for row in config.sampling_inputs},
                "input_ids": (
                    "int64",
                    config.max_num_tokens,
                ),  # last: only what a chunk fills is sent
            }
        )
        constants = PackedBuffer(
            {"num_known": ("int32", slots), "counting": ("int64", config.cache_len)}
        )
        scratch = PackedBuffer(
            {"input_ids": ("int64", slots * block), "next_ids": ("int64", block)}
        )
        self.results = cuda.allocate(self.results_record.nbytes, "results")
        self._prompt = cuda.allocate(self.prompt_record.nbytes, "a prompt chunk")
        constant = constants.addresses(self._send_constants(constants))
        scratch_at = scratch.addresses(cuda.allocate(scratch.nbytes, "a block"))
        self.addresses = {
            **self.results_record.addresses(self.results),
            "num_known": constant["num_known"],
            "kv_positions": constant["counting"],
            "decided": constant["counting"],
            "input_ids": scratch_at["input_ids"],
        }
        # A prompt brings its own small inputs, since parts of the slots' arrays are not aligned as
        # TensorRT wants it.
        self.prompt_addresses = self.prompt_record.addresses(self._prompt) | {
            "next_ids": scratch_at["next_ids"]
        }

    def send_prompt(self, memory: NDArray[np.uint8], num_tokens: int) -> None:
        """Copy a chunk of so many tokens to the device."""
        nbytes = self.prompt_record.offsets["input_ids"] + num_tokens * _ID_BYTES
        self._cuda.copy(self._prompt, memory.ctypes.data, nbytes)

    def _send_constants(self, record: PackedBuffer) -> int:
        memory = self._cuda.allocate_pinned(record.nbytes, "constants")
        views = record.views(memory)
        views["num_known"][:] = 1
        views["counting"][:] = np.arange(len(views["counting"]))
        address = self._cuda.allocate(record.nbytes, "constants")
        self._cuda.copy(address, memory.ctypes.data, record.nbytes)
        return address


class _InFlightStep:
    """One step that may be under way: which slots it is for, and host memory for what goes in and
    comes out.
    """

    def __init__(self, buffers: _Buffers, cuda: Cuda) -> None:
        self.first = self.count = self.width = self.rows = 0
        self.prompt_memory = cuda.allocate_pinned(buffers.prompt_record.nbytes, "a prompt chunk")
        self.prompt = buffers.prompt_record.views(self.prompt_memory)
        self.results_memory = cuda.allocate_pinned(buffers.results_record.nbytes, "results")
        self.results = buffers.results_record.views(self.results_memory)
        self.event = cuda.new_event()


def _shapes(ports: tuple[IoTensor, ...], sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    return {
        port.name: tuple(sizes[size] if isinstance(size, str) else size for size in port.shape)
        for port in ports
        if port.direction == "input"
    }
