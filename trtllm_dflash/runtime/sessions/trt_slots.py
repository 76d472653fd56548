"""What each slot of a GPU session has on the device: caches, and its rows of the inputs."""

from __future__ import annotations

from math import prod

from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.engine_dir.io_tensors import IoTensor
from trtllm_dflash.hardware.cuda import Cuda
from trtllm_dflash.runtime.sessions.base import SlotSampling
from trtllm_dflash.runtime.sessions.packed_buffer import PackedBuffer


class TrtSlots:
    """All slots' memory on the GPU; everything happens in the stream's order."""

    def __init__(self, config: EngineConfig, cuda: Cuda) -> None:
        """Allocate it, zeroed: attention without plugins multiplies unwritten rows by 0."""
        self._cuda = cuda
        self._sampling_names = [row.name for row in config.sampling_inputs]
        opening = ("past_len", *self._sampling_names, "uniforms")  # sent when a slot is opened
        self._caches: dict[str, IoTensor] = {}
        self._base: dict[str, int] = {}
        self._slot_bytes: dict[str, int] = {}
        fields: dict[str, tuple[str, int]] = {}
        for tensor in config.io:
            is_cache = bool(tensor.cache) and tensor.direction == "input"
            if not is_cache and tensor.name not in (*opening, "next_ids"):
                continue
            num_elements = prod(map(int, tensor.shape[1:]))
            slot_bytes = num_elements * tensor.item_bytes
            purpose = f"{config.max_batch_size} × {tensor.name}"
            self._slot_bytes[tensor.name] = slot_bytes
            self._base[tensor.name] = cuda.allocate(slot_bytes * config.max_batch_size, purpose)
            if is_cache:
                self._caches[tensor.name] = tensor
            elif tensor.name in opening:
                fields[tensor.name] = (tensor.dtype, num_elements)
        self._new = PackedBuffer(fields)
        self._new_memory = cuda.allocate_pinned(self._new.nbytes, "a new slot")

    def owns(self, name: str) -> bool:
        """Tell whether slots have an array of this name."""
        return name in self._base

    def address(self, name: str, slot: int = 0) -> int:
        """Return the address of the slot's array `name`; the next slots' follow without a gap."""
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
        self._cuda.synchronize()  # all slots share the host's memory

    def move(self, src: int, dst: int, used: int) -> None:
        """Copy a slot's state, and of its caches the rows of its `used` positions."""
        for name, nbytes in self._slot_bytes.items():
            src_address = self.address(name, src)
            dst_address = self.address(name, dst)
            if name not in self._caches:
                self._cuda.copy(dst_address, src_address, nbytes)
                continue
            heads, length, head_dim = map(int, self._caches[name].shape[1:])
            row = head_dim * self._caches[name].item_bytes
            in_use = min(used, length) * row  # a ring may have wrapped around
            pitch = length * row
            self._cuda.copy_rows(
                dst_address, pitch, src_address, pitch, row_bytes=in_use, rows=heads
            )
