"""What each slot of a GPU session has on the device: caches, and its rows of the inputs.

A padded decode step has more rows than slots that decode (`batch_ladder`). Its other rows are of
slots that are empty, or that have a prompt which does not decode yet. They leave nothing behind. A
step writes to a slot whose past_len is p:

    keys, values, tokens  at positions from p on. The slot's next step begins at p too, and writes
                          what it reads there. In a ring they destroy what rejected drafts would
                          (`engine_dir.ring_cache`).
    lengths, next_ids,    set aside before the step, and put back behind it.
    tally
    windows, states       likewise, of slots with a prompt. In an empty slot they have no value: at
                          state_len 0 they count as 0.

So p stays as it is, however many steps are padded. It is 0 in empty slots, which costs least.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum, auto
from itertools import cycle
from math import prod
from typing import Any, NamedTuple

from numpy.typing import NDArray

from trtllm_dflash.engine_dir.batch_ladder import BatchLadder
from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.engine_dir.io_tensors import IoTensor
from trtllm_dflash.engine_dir.spare_states import is_unaligned
from trtllm_dflash.hardware.cuda import Cuda
from trtllm_dflash.runtime.sessions.base import CARRIED, TALLY, SlotSampling
from trtllm_dflash.runtime.sessions.packed_buffer import PackedBuffer

# New slots whose values may be on their way to the device. The values of one arrive before the step
# behind them, and with lookahead that step is collected before the third slot is opened.
_NEW_SLOTS = 2


class _Use(Enum):
    EMPTY = auto()  # its lengths are 0
    PROMPT = auto()  # all or a part of a prompt, which does not decode yet
    DECODED = auto()  # a sequence that decodes, or has ended


class _NewSlot(NamedTuple):
    """Pinned memory for what a new slot begins with, and the event of its arrival."""

    values: dict[str, NDArray[Any]]  # views of the memory, by name
    arrived: Any


class _Area(NamedTuple):
    """Bytes of a slot's cache: for each head those in use, and from one head to the next."""

    heads: int
    in_use: int
    pitch: int


class TrtSlots:
    """All slots' memory on the GPU; everything happens in the stream's order."""

    def __init__(self, config: EngineConfig, cuda: Cuda) -> None:
        """Allocate it, zeroed: attention without plugins multiplies unwritten rows by 0."""
        self._cuda = cuda
        self._settings = tuple(config.slot_settings)
        # Sent when a slot is opened.
        lists = ("bias_ids", "bias_values", "bad_words")
        opening = (*CARRIED, *self._settings, *lists)
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
                if is_unaligned(tensor) and config.max_batch_size > 1:
                    self._aligned[tensor.name] = cuda.allocate(tensor.slot_bytes, purpose)
            elif tensor.name in opening:
                fields[tensor.name] = (tensor.dtype, prod(map(int, tensor.shape[1:])))
        self.carried = {name: out for name, out in CARRIED.items() if name in fields}
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

        self._use = [_Use.EMPTY] * config.max_batch_size
        most = BatchLadder(config.max_batch_size).most_padded
        # Where a padded step's rows are set aside: small arrays of all of them, states of prompts.
        self._aside = {
            name: cuda.allocate(self._slot_bytes[name] * config.max_batch_size, "padded steps")
            for name in (*self.carried, "next_ids")
        }
        self._aside_of_prompts = {
            name: cuda.allocate(self._slot_bytes[name] * most, "prompts beside padded steps")
            for name, cache in self._caches.items()
            if cache.recurrent and most
        }

    def owns(self, name: str) -> bool:
        """Tell whether slots have an array of this name."""
        return name in self._base

    def address(self, name: str, slot: int = 0) -> int:
        """Return the address of the slot's array `name`; the next slots' follow without a gap."""
        return self._base[name] + slot * self._slot_bytes[name]

    def open(self, slot: int, sampling: SlotSampling, length: int = 0) -> None:
        """Begin a new sequence of `length` known positions, behind the steps in flight."""
        new = next(self._new)
        self._cuda.wait_event(new.arrived)  # of an earlier slot, which has long arrived
        for name in self.carried:
            new.values[name][:] = 0 if name == TALLY else length
        for name in self._settings:
            new.values[name][:] = getattr(sampling, name)
        sampling.write_lists(new.values)
        for name, values in new.values.items():
            self._cuda.copy(self.address(name, slot), values.ctypes.data, values.nbytes)
        self._cuda.record_event(new.arrived)
        self._use[slot] = _Use.PROMPT

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

    def carried_bytes(self, name: str) -> int:
        """Return the bytes of one slot's array `name`."""
        return self._slot_bytes[name]

    def move(self, src: int, dst: int, used: int) -> None:
        """Copy a slot's state, and of its caches the rows of its `used` positions.

        Recurrent caches are no rows by position, so they are copied whole.
        """
        self._use[dst] = self._use[src]
        self._use[src] = _Use.DECODED
        for name, nbytes in self._slot_bytes.items():
            src_address = self.address(name, src)
            dst_address = self.address(name, dst)
            if name not in self._caches:
                self._cuda.copy(dst_address, src_address, nbytes)
                continue
            area = self._area(name, used)
            pitch = area.pitch
            self._cuda.copy_rows(
                dst_address, pitch, src_address, pitch, row_bytes=area.in_use, rows=area.heads
            )

    def copy_bytes(self, used: int) -> int:
        """Return the bytes of `used` positions of a slot in all caches, states whole."""
        areas = [self._area(name, used) for name in self._caches]
        return sum(area.heads * area.in_use for area in areas)

    def save(self, slot: int, used: int, address: int) -> None:
        """Copy the slot's `used` positions to memory of `copy_bytes(used)` at `address`."""
        for name in self._caches:
            area = self._area(name, used)
            self._cuda.copy_rows(
                address,
                area.in_use,
                self.address(name, slot),
                area.pitch,
                row_bytes=area.in_use,
                rows=area.heads,
            )
            address += area.heads * area.in_use

    def restore(self, slot: int, used: int, address: int, saved: int) -> None:
        """Write the first `used` positions back of `saved` that stand at `address`."""
        for name in self._caches:
            area, whole = self._area(name, used), self._area(name, saved)
            self._cuda.copy_rows(
                self.address(name, slot),
                area.pitch,
                address,
                whole.in_use,
                row_bytes=area.in_use,
                rows=area.heads,
            )
            address += whole.heads * whole.in_use

    def _area(self, name: str, used: int) -> _Area:
        """Return what `used` positions take of a slot's cache; a state has no positions."""
        cache = self._caches[name]
        heads, length, width = map(int, cache.shape[1:])
        row = width * cache.item_bytes
        in_use = length if cache.recurrent else min(used, length)  # a ring may be full
        return _Area(heads, in_use * row, length * row)

    def clear(self) -> None:
        """Make all slots as if they had never been used."""
        for name, nbytes in self._slot_bytes.items():
            self._cuda.clear(self._base[name], nbytes * len(self._use))
        self._use = [_Use.EMPTY] * len(self._use)

    def forget(self) -> None:
        """Take what all slots hold for of no value."""
        self._use = [_Use.DECODED] * len(self._use)

    @contextmanager
    def padded(self, count: int, batch: int) -> Iterator[None]:
        """Run a step of `batch` rows in which slots 0 … count - 1 decode; the others stay.

        Those behind them that have decoded before are emptied.
        """
        self._use[:count] = [_Use.DECODED] * count
        for slot in range(count, batch):
            if self._use[slot] is _Use.DECODED:
                for name in self.carried:
                    self._cuda.clear(self.address(name, slot), self._slot_bytes[name])
                self._use[slot] = _Use.EMPTY
        kept = list(self._kept(count, batch)) if batch > count else []
        for address, aside, nbytes in kept:
            self._cuda.copy(aside, address, nbytes)
        try:
            yield
        finally:  # a step that failed half way has written too
            for address, aside, nbytes in kept:
                self._cuda.copy(address, aside, nbytes)

    def _kept(self, first: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Yield what must stay in slots first … end - 1: its address, where it goes, its bytes."""
        for name, aside in self._aside.items():
            nbytes = (end - first) * self._slot_bytes[name]
            yield self.address(name, first), aside, nbytes
        prompts = [slot for slot in range(first, end) if self._use[slot] is _Use.PROMPT]
        for name, aside in self._aside_of_prompts.items():
            nbytes = self._slot_bytes[name]
            for place, slot in enumerate(prompts):
                yield self.address(name, slot), aside + place * nbytes, nbytes
