"""What the host gives a GPU session's slots for their next step: token masks, and drafts."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.engine_dir.io_tensors import ADJUSTS
from trtllm_dflash.hardware.cuda import Cuda
from trtllm_dflash.options.logit_adjustments import MASK, mask_words
from trtllm_dflash.runtime.sessions.base import Int32, Int64, SlotSampling
from trtllm_dflash.runtime.sessions.packed_buffer import PackedBuffer
from trtllm_dflash.runtime.sessions.trt_buffers import ID_BYTES
from trtllm_dflash.runtime.sessions.trt_slots import TrtSlots


class StepMasks:
    """Masks of the slots that were constrained, until the step that reads them.

    They travel from pinned memory of each slot. No step of a slot is in flight when it is
    constrained, so that the copies of its step before are done.
    """

    def __init__(self, config: EngineConfig, slots: TrtSlots, cuda: Cuda, address: int) -> None:
        """`address`: where a step reads its masks [B, R, W], those of its first slot first."""
        self._slots = slots
        self._cuda = cuda
        self._address = address
        self._words = mask_words(config.vocab_size)
        block = config.block_size
        self._layout = PackedBuffer(
            {
                "mask": ("int32", block * self._words),
                "drafts": ("int64", block),
                "asked": ("int32", 1),
                "unasked": ("int32", 1),
            }
        )
        self._memory: dict[int, NDArray[np.uint8]] = {}  # by slot
        self._waiting: dict[int, Int32] = {}  # by slot

    def add(self, slot: int, allowed: Int32 | None, drafts: Int64 | None) -> None:
        """Keep a slot's mask for its next step, and write its drafts behind the steps in flight."""
        if allowed is not None:
            self._waiting[slot] = allowed
        if drafts is None or not len(drafts):
            return
        staged = self._views(slot)["drafts"][: len(drafts)]
        staged[:] = drafts
        at = self._slots.address("next_ids", slot) + ID_BYTES
        self._cuda.copy(at, staged.ctypes.data, staged.nbytes)

    def forget(self, slot: int) -> None:
        """Drop a slot's mask."""
        self._waiting.pop(slot, None)

    def clear(self) -> None:
        """Drop all masks."""
        self._waiting.clear()

    def send(self, first: int, count: int, rows: int) -> list[int]:
        """Send the masks of a step of slots `first` … and return the slots that have one."""
        masked = [slot for slot in range(first, first + count) if slot in self._waiting]
        for slot in masked:
            mask = self._views(slot)["mask"][: rows * self._words]
            allowed = self._waiting.pop(slot)[:rows]
            mask[:] = -1
            mask[: allowed.size] = allowed.ravel()
            at = self._address + (slot - first) * mask.nbytes
            self._cuda.copy(at, mask.ctypes.data, mask.nbytes)
        return masked

    def ask(self, masked: list[int], sampling: list[SlotSampling | None]) -> None:
        """Let a decode step's slots read their masks."""
        for slot in masked:
            views = self._views(slot)
            own = sampling[slot]
            views["unasked"][0] = own.adjusts if own else 0
            views["asked"][0] = views["unasked"][0] | MASK
            self._copy_flag(slot, views["asked"])

    def unask(self, masked: list[int]) -> None:
        """Put the slots' own kinds back, behind the step."""
        for slot in masked:
            self._copy_flag(slot, self._views(slot)["unasked"])

    def _copy_flag(self, slot: int, value: Int32) -> None:
        at = self._slots.address(ADJUSTS, slot)
        self._cuda.copy(at, value.ctypes.data, value.nbytes)

    def _views(self, slot: int) -> dict[str, NDArray[Any]]:
        if slot not in self._memory:
            nbytes = self._layout.nbytes
            self._memory[slot] = self._cuda.allocate_pinned(nbytes, "a token mask")
        return self._layout.views(self._memory[slot])
