"""What slots own on the GPU: caches, lengths, next blocks, sampling; all slots of a kind in one
piece of memory.
"""

from __future__ import annotations

from math import prod

from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.hardware.cuda import Cuda
from trtllm_dflash.runtime.sessions.base import SlotSampling
from trtllm_dflash.runtime.sessions.packed_buffer import PackedBuffer


class TrtSlots:
    """All slots' memory on the GPU; everything happens in the stream's order."""

    def __init__(self, config: EngineConfig, cuda: Cuda) -> None:
        """Allocate it, zeroed: attention without plugins multiplies rows that nobody has written by
        0.
        """
        self._cuda = cuda
        self._caches = {
            port.name: port for port in config.ports if port.cache and port.direction == "input"
        }
        self._sampling_names = [row.name for row in config.sampling_inputs]
        sent = ("past_len", *self._sampling_names, "uniforms")  # by the host to a slot it opens
        names = (*sent, "next_ids")
        owned = {port.name: port for port in config.ports if port.name in names} | self._caches
        self._slot_bytes = {
            name: prod(map(int, port.shape[1:])) * port.item_bytes for name, port in owned.items()
        }
        slots = config.max_batch_size
        self._base = {
            name: cuda.allocate(size * slots, f"{slots} × {name}")
            for name, size in self._slot_bytes.items()
        }
        self._new = PackedBuffer(
            {name: (owned[name].dtype, prod(map(int, owned[name].shape[1:]))) for name in sent}
        )
        self._new_memory = cuda.allocate_pinned(self._new.nbytes, "a new slot")

    def owns(self, name: str) -> bool:
        """Whether slots have an array of this name."""
        return name in self._base

    def address(self, name: str, slot: int = 0) -> int:
        """Where the slot's array `name` is; those of the slots behind it follow without a gap."""
        return self._base[name] + slot * self._slot_bytes[name]

    def open(self, slot: int, sampling: SlotSampling) -> None:
        """Empty a slot for a new sequence; done when this returns."""
        new = self._new.views(self._new_memory)
        new["past_len"][0] = 0
        for name in self._sampling_names:
            new[name][0] = getattr(sampling, name)
        new["uniforms"][: len(sampling.uniforms)] = sampling.uniforms
        for name, values in new.items():
            self._cuda.copy(self.address(name, slot), values.ctypes.data, values.nbytes)
        self._cuda.synchronize()  # the host's copy is one for all slots

    def move(self, src: int, dst: int, used: int) -> None:
        """Copy a slot's state, and of its caches the rows of its `used` positions."""
        for name, size in self._slot_bytes.items():
            there, here = self.address(name, dst), self.address(name, src)
            if name not in self._caches:
                self._cuda.copy(there, here, size)
                continue
            _, heads, length, head_dim = map(int, (0, *self._caches[name].shape[1:]))
            row = head_dim * self._caches[name].item_bytes
            in_use = min(used, length) * row  # a ring may have come round
            self._cuda.copy_rows(
                there, length * row, here, length * row, row_bytes=in_use, rows=heads
            )
