"""GPU sessions, for TensorRT and TensorRT-RTX: the device runs one step ahead of the host.

All state stays on the device.

    host     prompt chunk ─copy─┐                      ┌─ results of step n, while n+1 runs
    stream   ───────────────────┴► prefill ► step 0 ► step 1 ► …
    device   next_ids ─► input_ids ► engine ► next_ids, next_len ─► past_len   (one CUDA graph)

All caches are allocated once, each with one address for input and output. A prompt runs in its
slot's part of them, a decode step in slots 0 … count - 1, padded to few batch sizes.

A decode step is one captured graph, whose addresses never change. The host launches it and copies
the results of the step before. Two ladders have the batch sizes and widths of steps. All of these
are captured when a session opens, so that nothing is compiled or captured while clients wait.
Without that warm-up a step is captured when it is needed for the second time.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np

from trtllm_dflash.engine_dir import manifest
from trtllm_dflash.engine_dir.batch_ladder import BatchLadder
from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.engine_dir.files import ENGINE_FILE
from trtllm_dflash.engine_dir.io_tensors import (
    ADJUSTS,
    BATCH,
    BLOCK,
    CONTEXT,
    ROWS,
    TOKEN_MASK,
    WIDTH,
)
from trtllm_dflash.errors import EngineError
from trtllm_dflash.hardware import devices
from trtllm_dflash.hardware.cuda import Cuda
from trtllm_dflash.options.logit_adjustments import MASK
from trtllm_dflash.runtime.env import CUDA_GRAPH, WARM_UP, env_flag
from trtllm_dflash.runtime.sessions.base import (
    CALLER_BUG,
    Int32,
    Int64,
    SlotSampling,
    StepResult,
    check_constraint,
    context_length,
)
from trtllm_dflash.runtime.sessions.load_times import LoadTimes
from trtllm_dflash.runtime.sessions.slot_copy import Prefix, SlotCopy
from trtllm_dflash.runtime.sessions.trt_buffers import (
    ID_BYTES,
    InFlightStep,
    StepBuffers,
    input_shapes,
)
from trtllm_dflash.runtime.sessions.trt_copies import TrtCopies
from trtllm_dflash.runtime.sessions.trt_decode import DecodeStep, warn_of_capture
from trtllm_dflash.runtime.sessions.trt_engine import PREFILL_PROFILE, TrtEngine
from trtllm_dflash.runtime.sessions.trt_masks import StepMasks
from trtllm_dflash.runtime.sessions.trt_slots import TrtSlots
from trtllm_dflash.runtime.sessions.width_ladder import WidthLadder

_LOG = logging.getLogger(__name__)
_GREEDY = SlotSampling()


class TrtSession:
    """A `Session` on one GPU."""

    lookahead = 1
    may_skip_drafter = False  # a block has a fixed size, and is computed in every step

    def __init__(
        self,
        directory: Path,
        config: EngineConfig,
        *,
        num_threads: int | None = None,  # noqa: ARG002 - of CPU sessions
        draft_lens: Iterable[int] | None = None,
        prefix_bytes: int = 0,
        capture: bool | None = None,
    ) -> None:
        """Load `directory`/rank0.engine and allocate all slots' caches.

        `draft_lens`: the numbers of drafts that requests will ask for; None: any.
        `prefix_bytes`: the most that copies of slots may take.
        `capture`: whether steps are captured in CUDA graphs; None asks DFLASH_CUDA_GRAPH, on by
        default.
        """
        self._config = config
        self._capture = env_flag(CUDA_GRAPH, default=True) if capture is None else capture
        self._cuda = Cuda(devices.first_gpu_index(config.gpu_arch))
        facts = manifest.load(directory)
        versions = facts.get("versions", {})
        elsewhere = manifest.platform_difference(facts)
        if elsewhere is not None:
            _LOG.warning("%s: %s", directory, elsewhere)
        digest = manifest.digest_of(facts, ENGINE_FILE)
        times = LoadTimes()
        with times.part("engine"):
            self._engine = TrtEngine(
                directory / ENGINE_FILE, config, self._cuda, versions=versions, digest=digest
            )
        with times.part("caches"):
            self._slots = TrtSlots(config, self._cuda)
            self._buffers = StepBuffers(config, self._cuda)
        self._sampling: list[SlotSampling | None] = [None] * config.max_batch_size
        # Positions that each slot holds, as far as collected.
        self._lengths = np.zeros(config.max_batch_size, np.int32)
        with times.part("contexts"):
            self._prefill_context = self._engine.context(PREFILL_PROFILE, fixed_shapes=False)
        self._warn = cache(warn_of_capture)  # once
        self._sizes = {CONTEXT: config.cache_len, BLOCK: config.block_size}
        self._ladder = BatchLadder(config.max_batch_size)
        self._widths = WidthLadder(config.block_size, config.draft_len, draft_lens)
        self._decode_steps: dict[tuple[int, int], DecodeStep] = {}
        self._has_new_kernels = False
        self._free = deque(
            InFlightStep(self._buffers, self._cuda) for _ in range(self.lookahead + 1)
        )
        self._in_flight: deque[InFlightStep] = deque()
        self._copies = TrtCopies(self._slots, self._cuda, prefix_bytes)
        masks = self._buffers.addresses[TOKEN_MASK]
        self._masks = StepMasks(config, self._slots, self._cuda, masks)
        self._is_warm = env_flag(WARM_UP, default=True)
        if self._is_warm:
            self._warm_up(times)
        _LOG.info("loaded %s: %s", directory, times)

    @property
    def max_batch_size(self) -> int:
        """Return the number of slots."""
        return self._config.max_batch_size

    @property
    def max_num_tokens(self) -> int:
        """Return the width of the widest step, which is the largest prompt chunk."""
        return self._config.max_num_tokens

    def open_slot(
        self, slot: int, sampling: SlotSampling, prefix: Prefix | None = None
    ) -> None:
        """Empty a slot, or let it begin with a prefix, in the stream behind the steps in flight."""
        self._cuda.make_current()
        if any(step.slots.start <= slot < step.slots.stop for step in self._in_flight):
            raise EngineError(f"slot {slot} is opened while it is in a step. {CALLER_BUG}")
        length = 0 if prefix is None else prefix.length
        self._slots.open(slot, sampling, length)
        if prefix is not None:
            self._copies.restore(slot, prefix)
        self._sampling[slot] = sampling
        self._masks.forget(slot)
        self._allocate_results(sampling)
        self._lengths[slot] = length

    def save_slot(self, slot: int, length: int) -> SlotCopy | None:
        """Copy what a slot holds of its first `length` positions; None if there is no room."""
        self._cuda.make_current()
        return self._copies.save(slot, length)

    def drop_copy(self, copy: SlotCopy) -> None:
        """Give a copy's room back."""
        self._copies.drop(copy)

    def prefill(self, slot: int, input_ids: Int64, *, draft: bool = True) -> None:  # noqa: ARG002
        """Append tokens [S] to those that one slot holds."""
        width = len(input_ids)
        step = self._next_step(slot, 1, width=width, rows=1)
        past_len = self._max_lengths(slot, 1)
        self._send_chunk(step, slot, input_ids, past_len)
        addresses = self._addresses(slot, self._slots.align(slot))
        addresses |= self._buffers.chunk_addresses
        for name in self._buffers.taken:  # what the slot's last step has left, on the device
            at = self._slots.address(name, slot)
            self._cuda.copy(addresses[name], at, self._slots.carried_bytes(name))
        context = context_length(past_len, width, self._config)
        sizes = self._sizes | {BATCH: 1, WIDTH: width, ROWS: 1, CONTEXT: context}
        self._prefill_context.bind(input_shapes(self._config.io, sizes), addresses)
        self._has_new_kernels |= not self._prefill_context.has_run
        self._prefill_context.run()
        block_bytes = self._config.block_size * ID_BYTES
        self._slots.put_back(slot)
        for name, output in self._slots.carried.items():
            at = self._slots.address(name, slot)
            self._cuda.copy(at, addresses[output], self._slots.carried_bytes(name))
        next_ids_address = self._slots.address("next_ids", slot)
        self._cuda.copy(next_ids_address, addresses["next_ids"], block_bytes)
        self._enqueue_step(step)

    def constrain(self, slot: int, allowed: Int32 | None, drafts: Int64 | None = None) -> None:
        """Limit what a slot's next step may decide."""
        check_constraint(self._config, allowed, drafts)
        self._cuda.make_current()
        if any(step.slots.start <= slot < step.slots.stop for step in self._in_flight):
            raise EngineError(f"slot {slot} is constrained while it is in a step. {CALLER_BUG}")
        self._masks.add(slot, allowed, drafts)

    def step_width(self, width: int) -> int:
        """Return the next width for which steps are ready; `width` itself without a warm-up."""
        return self._widths.rung(width) if self._is_warm else width

    def decode(self, count: int, width: int, *, draft: bool = True) -> None:  # noqa: ARG002
        """Verify and decide in slots 0 … count - 1."""
        step = self._next_step(0, count, width=width, rows=width)
        context_length(self._max_lengths(0, count), width, self._config)  # raises without room
        batch = self._ladder.rung(count)
        decode_step = self._decode_step(batch, width)
        masked = self._masks.send(0, count, width)
        self._masks.ask(masked, self._sampling)
        with self._slots.padded(count, batch):
            decode_step.launch()
        self._masks.unask(masked)
        self._enqueue_step(step)

    def collect(self) -> StepResult:
        """Wait for the oldest step in flight, and return what it decided."""
        if not self._in_flight:
            raise EngineError(
                f"no step is in flight whose result could be collected. {CALLER_BUG}"
            )
        self._cuda.make_current()
        step = self._in_flight.popleft()
        self._free.append(step)
        self._cuda.wait_event(step.event)
        result = step.result(self._buffers, self._slots.carried.values())
        assert result.next_len is not None
        self._lengths[step.slots] = result.next_len
        return result

    def move_slot(self, src: int, dst: int) -> None:
        """Copy a slot's state, and of its caches the rows in use, recurrent ones whole."""
        self._cuda.make_current()
        if self._in_flight:  # how many rows are in use is not known yet
            raise EngineError(f"a step is in flight while a slot is moved. {CALLER_BUG}")
        self._slots.move(src, dst, int(self._lengths[src]))
        self._sampling[dst] = self._sampling[src]
        self._lengths[dst] = self._lengths[src]

    def discard(self) -> None:
        """Wait for all steps in flight and drop their results."""
        self._cuda.make_current()
        self._cuda.synchronize()
        self._free.extend(self._in_flight)
        self._in_flight.clear()
        self._slots.forget()
        self._masks.clear()

    def keep(self) -> None:
        """Keep the kernels that were finished since the last time."""
        if self._has_new_kernels:
            self._has_new_kernels = False
            with suppress(EngineError):  # the GPU may have failed
                self._cuda.make_current()
                self._engine.keep_kernels()

    def _next_step(self, first: int, count: int, *, width: int, rows: int) -> InFlightStep:
        self._cuda.make_current()
        if not self._free:
            raise EngineError(
                f"{len(self._in_flight)} steps are in flight, and no more may be: collect one"
                f" first. {CALLER_BUG}"
            )
        step = self._free[0]
        step.first = first
        step.count = count
        step.width = width
        step.rows = rows
        return step

    def _send_chunk(
        self, step: InFlightStep, slot: int, input_ids: Int64, past_len: Int32
    ) -> None:
        sampling = self._sampling[slot]
        if sampling is None:
            raise EngineError(f"slot {slot} has a prompt and was not opened. {CALLER_BUG}")
        chunk = step.chunk
        chunk["num_known"][0] = len(input_ids)
        chunk["past_len"][0] = past_len[0]
        for name in self._config.slot_settings:
            chunk[name][:] = getattr(sampling, name)
        if self._masks.send(slot, 1, rows=1):
            chunk[ADJUSTS][0] |= MASK
        chunk["input_ids"][: len(input_ids)] = input_ids
        self._buffers.send_chunk(step.chunk_memory, len(input_ids))

    def _enqueue_step(self, step: InFlightStep) -> None:
        """Copy the results to the host behind the step, and record the event of their arrival."""
        sampling = [slot for slot in self._sampling[step.slots] if slot is not None]
        step.has_logits = any(slot.wants_logits for slot in sampling)
        step.has_drafts = any(slot.wants_drafts for slot in sampling)
        step.fetch(self._buffers, self._cuda, self._slots.address("next_ids", step.first))
        self._cuda.record_event(step.event)
        self._in_flight.append(self._free.popleft())

    def _allocate_results(self, sampling: SlotSampling) -> None:
        """Allocate the host's memory for what the first slot of its kind wants.

        Steps in flight bring none: their slots wanted none.
        """
        for step in (*self._free, *self._in_flight):
            if sampling.wants_logits:
                step.allocate_logits(self._buffers, self._cuda)
            if sampling.wants_drafts:
                step.allocate_drafts(self._buffers, self._cuda)

    def _max_lengths(self, first: int, count: int) -> Int32:
        """Return the most positions that slots can hold after the steps in flight.

        They are exact while a prompt is prefilled.
        """
        lengths = self._lengths.copy()
        for step in self._in_flight:
            lengths[step.slots] += step.width
        return lengths[first : first + count]

    def _addresses(
        self, first_slot: int, elsewhere: Mapping[str, int] | None = None
    ) -> dict[str, int]:
        """Return all tensors' addresses for a decode step whose first slot is `first_slot`.

        Caches that are `elsewhere` have those addresses.
        """
        addresses = {}
        for tensor in self._config.io:
            owner = tensor.aliases or tensor.name
            if elsewhere and owner in elsewhere:
                addresses[tensor.name] = elsewhere[owner]
            elif self._slots.owns(owner):
                addresses[tensor.name] = self._slots.address(owner, first_slot)
            else:
                addresses[tensor.name] = self._buffers.addresses[owner]
        return addresses

    def _warm_up(self, times: LoadTimes) -> None:
        """Run and capture the steps that clients will need; slots are unused behind it.

        They are a prompt of one token, the widest one, and decode steps of all batch sizes and
        widths.
        """
        with times.part("contexts"):
            widths = self._widths.rungs
            shapes = [(batch, width) for width in widths for batch in self._ladder.rungs]
            steps = {shape: self._decode_step(*shape) for shape in shapes}
        with times.part("warm-up"):
            for width in {1, min(self._config.max_num_tokens, self._config.max_input_len)}:
                self.open_slot(0, _GREEDY)
                self.prefill(0, np.zeros(width, np.int64))
                self.collect()
            self._slots.clear()
            for (batch, _), step in steps.items():
                with self._slots.padded(0, batch):
                    step.prepare()
            self._slots.clear()
            self._cuda.synchronize()
            self._sampling[0] = None
            self._lengths[0] = 0
        with times.part("kept kernels"):
            self.keep()

    def _decode_step(self, batch: int, width: int) -> DecodeStep:
        if (batch, width) not in self._decode_steps:
            self._decode_steps[batch, width] = self._make_decode_step(batch, width)
            self._has_new_kernels = True
        return self._decode_steps[batch, width]

    def _make_decode_step(self, count: int, width: int) -> DecodeStep:
        # The context's length is that of the caches, since a captured graph's shapes are constant.
        sizes = self._sizes | {BATCH: count, WIDTH: width, ROWS: width}
        context = self._engine.context(self._engine.decode_profile, fixed_shapes=True)
        addresses = self._addresses(0)
        context.bind(input_shapes(self._config.io, sizes), addresses)
        cuda = self._cuda
        row = width * ID_BYTES
        block = self._config.block_size * ID_BYTES
        input_ids = addresses["input_ids"]
        next_ids = addresses["next_ids"]
        carried = [
            (addresses[name], addresses[output], count * self._slots.carried_bytes(name))
            for name, output in self._slots.carried.items()
        ]

        def run() -> None:
            # next_ids is both input and output. The input is a copy, since it is still read when
            # the output is already written. So is what a slot carries to its next step.
            cuda.copy_rows(input_ids, row, next_ids, block, row_bytes=row, rows=count)
            context.run()
            for at, output, nbytes in carried:
                cuda.copy(at, output, nbytes)

        return DecodeStep(context, run, cuda, capture=self._capture, warn=self._warn)
