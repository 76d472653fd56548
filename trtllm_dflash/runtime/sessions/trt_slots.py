"""What each slot of a GPU session has on the device: caches, and its rows of the inputs."""

from __future__ import annotations

from itertools import cycle
from math import prod
from typing import Any, NamedTuple

from numpy.typing import NDArray

from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.engine_dir.io_tensors import IoTensor
from trtllm_dflash.hardware.cuda import ALIGNMENT, Cuda
from trtllm_dflash.runtime.sessions.base import LENGTHS, SlotSampling
from trtllm_dflash.runtime.sessions.packed_buffer import PackedBuffer

# New slots whose values may be on their way to the device. The values of one arrive before the step
# behind them, and with lookahead that step is collected before the third slot is opened.
_NEW_SLOTS = 2


class _NewSlot(NamedTuple):
    """Pinned memory for what a new slot begins with, and the event of its arrival."""

    values: dict[str, NDArray[Any]]  # views of the memory, by name
    arrived: Any


class TrtSlots:
    """All slots' memory on the GPU; everything happens in the stream's order."""

    def __init__(self, config: EngineConfig, cuda: Cuda) -> None:
        """Allocate it, zeroed: attention without plugins multiplies unwritten rows by 0."""
        self._cuda = cuda
        self._sampling_names = [row.name for row in config.sampling_inputs]
        # Sent when a slot is opened.
        opening = (*LENGTHS, *self._sampling_names, "uniforms")
        self._caches: dict[str, IoTensor] = {}
        self._base: dict[str, int] = {}
        self._slot_bytes: dict[str, int] = {}
        # Caches of which only the first slot's begin where TensorRT takes an address, and memory
        # that does.
        self._aligned: dict[str, int] = {}
        fields: dict[str, tuple[str, int]] = {}
        for tensor in config.io:
            is_cache = bool(tensor.cache) and tensor.direction == "input"
            if not is_cache and tensor.name not in (*opening, "next_ids"):
                continue
            purpose = f"{config.max_batch_size} × {tensor.name}"
            nbytes = tensor.slot_bytes * config.max_batch_size
            self._slot_bytes[tensor.name] = tensor.slot_bytes
            self._base[tensor.name] = cuda.allocate(nbytes, purpose)
            if is_cache:
                self._caches[tensor.name] = tensor
                if tensor.recurrent and tensor.slot_bytes % ALIGNMENT:
                    self._aligned[tensor.name] = cuda.allocate(tensor.slot_bytes, purpose)
            elif tensor.name in opening:
                fields[tensor.name] = (tensor.dtype, prod(map(int, tensor.shape[1:])))
        self.lengths = {name: out for name, out in LENGTHS.items() if name in fields}
        layout = PackedBuffer(fields)
        self._new = cycle(
            [
                _NewSlot(
                    layout.views(cuda.allocate_pinned(layout.nbytes, "a new slot")),
                    cuda.new_event(),
                )
                for _ in range(_NEW_SLOTS)
            ]
        )

    def owns(self, name: str) -> bool:
        """Tell whether slots have an array of this name."""
        return name in self._base

    def address(self, name: str, slot: int = 0) -> int:
        """Return the address of the slot's array `name`; the next slots' follow without a gap."""
        return self._base[name] + slot * self._slot_bytes[name]

    def open(self, slot: int, sampling: SlotSampling) -> None:
        """Empty a slot for a new sequence, behind the steps in flight."""
        new = next(self._new)
        self._cuda.wait_event(new.arrived)  # of an earlier slot, which has long arrived
        for name in self.lengths:
            new.values[name][0] = 0
        for name in self._sampling_names:
            new.values[name][0] = getattr(sampling, name)
        new.values["uniforms"][: len(sampling.uniforms)] = sampling.uniforms
        for name, values in new.values.items():
            self._cuda.copy(self.address(name, slot), values.ctypes.data, values.nbytes)
        self._cuda.record_event(new.arrived)

    def align(self, slot: int) -> dict[str, int]:
        """Return addresses of copies of the slot's caches that begin where TensorRT takes none.

        `put_back` writes the copies to the slot.
        """
        if slot == 0:
            return {}
        for name, address in self._aligned.items():
            self._cuda.copy(address, self.address(name, slot), self._slot_bytes[name])
        return dict(self._aligned)

    def put_back(self, slot: int) -> None:
        """Write the slot's caches that `align` has copied."""
        if slot == 0:
            return
        for name, address in self._aligned.items():
            self._cuda.copy(self.address(name, slot), address, self._slot_bytes[name])

    def move(self, src: int, dst: int, used: int) -> None:
        """Copy a slot's state, and of its caches the rows of its `used` positions.

        Recurrent caches are no rows by position, so they are copied whole.
        """
        for name, nbytes in self._slot_bytes.items():
            src_address = self.address(name, src)
            dst_address = self.address(name, dst)
            cache = self._caches.get(name)
            if cache is None or cache.recurrent:
                self._cuda.copy(dst_address, src_address, nbytes)
                continue
            heads, length, head_dim = map(int, cache.shape[1:])
            row = head_dim * cache.item_bytes
            in_use = min(used, length) * row  # a ring may have wrapped around
            pitch = length * row
            self._cuda.copy_rows(
                dst_address, pitch, src_address, pitch, row_bytes=in_use, rows=heads
            )
