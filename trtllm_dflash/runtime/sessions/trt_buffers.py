"""Memory of GPU steps that no slot owns: inputs, results, constants, and the steps in flight."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.engine_dir.io_tensors import BLOCK_ROWS, LOGITS, TOKEN_MASK, IoTensor
from trtllm_dflash.hardware.cuda import Cuda
from trtllm_dflash.options.draft_sources import TALLY_SIZE
from trtllm_dflash.options.logit_adjustments import mask_words
from trtllm_dflash.runtime.sessions.base import CARRIED, TALLY, StepResult
from trtllm_dflash.runtime.sessions.packed_buffer import PackedBuffer

ID_BYTES = 8  # of a token id


class StepBuffers:
    """Device memory of a step that no slot owns."""

    def __init__(self, config: EngineConfig, cuda: Cuda) -> None:
        """Allocate it; all of it is used by one step at a time."""
        slots = config.max_batch_size
        block = config.block_size
        self._cuda = cuda
        self.block_size = block
        self.max_tokens = slots * block  # of a decode step
        self.results_layout = PackedBuffer(
            {
                "new_ids": ("int64", slots * block),
                "num_new": ("int32", slots),
                "next_len": ("int32", slots),
                **({"next_state_len": ("int32", slots)} if config.has_states else {}),
                **({"next_tally": ("int32", slots * TALLY_SIZE)} if config.has_lookup else {}),
            }
        )
        self.chunk_layout = PackedBuffer(
            {
                "num_known": ("int32", 1),
                "past_len": ("int32", 1),
                **config.slot_settings,
                # Last, so that only the tokens of a chunk are sent.
                "input_ids": ("int64", config.max_num_tokens),
            }
        )
        ids = {"input_ids": ("int64", slots * block), "next_ids": ("int64", block)}
        carried = {"state_len": ("int32", 1), "tally": ("int32", TALLY_SIZE)}
        scratch = PackedBuffer(ids | carried)
        self.results = cuda.allocate(self.results_layout.nbytes, "results")
        self._chunk = cuda.allocate(self.chunk_layout.nbytes, "a prompt chunk")
        self.vocab_size = config.vocab_size
        self.logits = 0
        if config.has_logits:
            self.logits = cuda.allocate(slots * block * self.logits_bytes, "logits")
        mask_bytes = 4 * slots * block * mask_words(config.vocab_size)
        masks = cuda.allocate(mask_bytes, "token masks") if config.has_adjust else 0
        constants = self._constants(slots, config.cache_len)
        blocks = scratch.addresses(cuda.allocate(scratch.nbytes, "a block"))
        # A decode step's tensors by name.
        self.addresses = {
            **self.results_layout.addresses(self.results),
            "num_known": constants["num_known"],
            "kv_positions": constants["counting"],
            "decided": constants["counting"],
            BLOCK_ROWS.name: constants["counting"],
            "input_ids": blocks["input_ids"],
            LOGITS: self.logits,
            TOKEN_MASK: masks,
        }
        # A prompt chunk brings its own small inputs: parts of the slots' arrays are not aligned as
        # TensorRT wants it.
        self.chunk_addresses = self.chunk_layout.addresses(self._chunk)
        self.chunk_addresses["next_ids"] = blocks["next_ids"]
        # A chunk takes these from its slot, on the device.
        has = {"state_len": config.has_states, "tally": config.has_lookup}
        self.taken = tuple(name for name, is_input in has.items() if is_input)
        self.chunk_addresses |= {name: blocks[name] for name in self.taken}

    @property
    def logits_bytes(self) -> int:
        """Return the bytes of one row's logits, float32."""
        return 4 * self.vocab_size

    def send_chunk(self, memory: NDArray[np.uint8], num_tokens: int) -> None:
        """Copy a chunk of so many tokens to the device."""
        nbytes = self.chunk_layout.offsets["input_ids"] + num_tokens * ID_BYTES
        self._cuda.copy(self._chunk, memory.ctypes.data, nbytes)

    def _constants(self, slots: int, cache_len: int) -> dict[str, int]:
        layout = PackedBuffer({"num_known": ("int32", slots), "counting": ("int64", cache_len)})
        memory = self._cuda.allocate_pinned(layout.nbytes, "constants")
        views = layout.views(memory)
        views["num_known"][:] = 1
        views["counting"][:] = np.arange(cache_len)
        address = self._cuda.allocate(layout.nbytes, "constants")
        self._cuda.copy(address, memory.ctypes.data, layout.nbytes)
        return layout.addresses(address)


def input_shapes(
    io_tensors: tuple[IoTensor, ...], sizes: Mapping[str, int]
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a step's inputs, with these sizes."""
    shapes = {}
    for tensor in io_tensors:
        if tensor.direction == "input":
            shape = [sizes[size] if isinstance(size, str) else size for size in tensor.shape]
            shapes[tensor.name] = tuple(shape)
    return shapes


class InFlightStep:
    """One step that may be in flight: its slots, and pinned memory for its inputs and results."""

    def __init__(self, buffers: StepBuffers, cuda: Cuda) -> None:
        """Allocate the memory of one step; many steps use it, one after the other."""
        self.first = self.count = self.width = self.rows = 0
        chunk = buffers.chunk_layout
        results = buffers.results_layout
        self.chunk_memory = cuda.allocate_pinned(chunk.nbytes, "a prompt chunk")
        self.chunk = chunk.views(self.chunk_memory)
        self.results_memory = cuda.allocate_pinned(results.nbytes, "results")
        self.results = results.views(self.results_memory)
        self.logits_memory: NDArray[np.uint8] | None = None  # once a slot has wanted logits
        self.has_logits = False
        self.drafts_memory: NDArray[np.uint8] | None = None  # once a slot has wanted drafts
        self.has_drafts = False
        self.event = cuda.new_event()

    @property
    def slots(self) -> slice:
        """Return the slots that the step runs."""
        return slice(self.first, self.first + self.count)

    def allocate_logits(self, buffers: StepBuffers, cuda: Cuda) -> None:
        """Allocate the host's memory for logits, once."""
        if self.logits_memory is None:
            nbytes = buffers.max_tokens * buffers.logits_bytes
            self.logits_memory = cuda.allocate_pinned(nbytes, "logits")

    def allocate_drafts(self, buffers: StepBuffers, cuda: Cuda) -> None:
        """Allocate the host's memory for next blocks, once."""
        if self.drafts_memory is None:
            self.drafts_memory = cuda.allocate_pinned(buffers.max_tokens * ID_BYTES, "drafts")

    def fetch(self, buffers: StepBuffers, cuda: Cuda, next_ids: int) -> None:
        """Copy the results to the host behind the step; `next_ids` is its slots' address."""
        memory = self.results_memory
        cuda.copy(memory.ctypes.data, buffers.results, memory.nbytes)
        if self.has_logits and self.logits_memory is not None:
            nbytes = self.count * self.rows * buffers.logits_bytes
            cuda.copy(self.logits_memory.ctypes.data, buffers.logits, nbytes)
        if self.has_drafts and self.drafts_memory is not None:
            nbytes = self.count * buffers.block_size * ID_BYTES
            cuda.copy(self.drafts_memory.ctypes.data, next_ids, nbytes)

    def result(self, buffers: StepBuffers, carried: Iterable[str]) -> StepResult:
        """Return what the step decided, once its results are there.

        `carried` names those that slots carry to their next step.
        """
        count, rows, found = self.count, self.rows, self.results
        slots = len(found["num_new"])
        after = {name: found[name].reshape(slots, -1)[:count].copy() for name in carried}
        tally = after.pop(CARRIED[TALLY], None)
        new_ids = found["new_ids"][: count * rows].reshape(count, rows)
        logits = drafts = None
        if self.has_logits and self.logits_memory is not None:
            taken = self.logits_memory[: count * rows * buffers.logits_bytes]
            logits = taken.view(np.float32).reshape(count, rows, -1).copy()
        if self.has_drafts and self.drafts_memory is not None:
            taken = self.drafts_memory[: count * buffers.block_size * ID_BYTES]
            drafts = taken.view(np.int64).reshape(count, -1).copy()
        return StepResult(
            new_ids.copy(),
            found["num_new"][:count].copy(),
            logits=logits,
            next_tally=tally,
            next_ids=drafts,
            **{name: values[:, 0] for name, values in after.items()},
        )
