"""Memory of GPU steps that no slot owns: inputs, results, constants, and the steps in flight."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.engine_dir.io_tensors import LOGITS
from trtllm_dflash.hardware.cuda import Cuda
from trtllm_dflash.options.draft_sources import TALLY_SIZE
from trtllm_dflash.runtime.sessions.packed_buffer import PackedBuffer

ID_BYTES = 8  # of a token id


class StepBuffers:
    """Device memory of a step that no slot owns."""

    def __init__(self, config: EngineConfig, cuda: Cuda) -> None:
        """Allocate it; all of it is used by one step at a time."""
        slots = config.max_batch_size
        block = config.block_size
        self._cuda = cuda
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
                **{name: (dtype, 1) for name, dtype in config.slot_settings.items()},
                # Last, so that only the tokens of a chunk are sent.
                "input_ids": ("int64", config.max_num_tokens),
            }
        )
        scratch = PackedBuffer(
            {
                "input_ids": ("int64", slots * block),
                "next_ids": ("int64", block),
                "state_len": ("int32", 1),
                "tally": ("int32", TALLY_SIZE),
            }
        )
        self.results = cuda.allocate(self.results_layout.nbytes, "results")
        self._chunk = cuda.allocate(self.chunk_layout.nbytes, "a prompt chunk")
        self.vocab_size = config.vocab_size
        self.logits = 0
        if config.has_logits:
            self.logits = cuda.allocate(slots * block * self.logits_bytes, "logits")
        constants = self._constants(slots, config.cache_len)
        blocks = scratch.addresses(cuda.allocate(scratch.nbytes, "a block"))
        # A decode step's tensors by name.
        self.addresses = {
            **self.results_layout.addresses(self.results),
            "num_known": constants["num_known"],
            "kv_positions": constants["counting"],
            "decided": constants["counting"],
            "input_ids": blocks["input_ids"],
            LOGITS: self.logits,
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
        self.event = cuda.new_event()

    @property
    def slots(self) -> slice:
        """Return the slots that the step runs."""
        return slice(self.first, self.first + self.count)
