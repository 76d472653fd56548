"""Copies of slots in GPU memory, taken and put back in the stream's order."""

from __future__ import annotations

import logging

from trtllm_dflash.hardware.cuda import Cuda
from trtllm_dflash.log import human_bytes
from trtllm_dflash.runtime.sessions.copy_arena import CopyArena
from trtllm_dflash.runtime.sessions.slot_copy import Prefix, SlotCopy
from trtllm_dflash.runtime.sessions.trt_slots import TrtSlots

_LOG = logging.getLogger(__name__)


class TrtCopies:
    """The pool of a session's copies: at most half of what is free when it is made."""

    def __init__(self, slots: TrtSlots, cuda: Cuda, most_bytes: int) -> None:
        """Allocate the pool; `most_bytes` 0: there is none."""
        self._slots = slots
        self._address = 0
        nbytes = min(most_bytes, cuda.free_bytes() // 2) if most_bytes else 0
        if nbytes < most_bytes:
            _LOG.info("the prefix cache has %s: no more is free", human_bytes(nbytes))
        if nbytes:
            self._address = cuda.allocate(nbytes, "the prefix cache")
        self._arena = CopyArena(nbytes)

    def save(self, slot: int, length: int) -> SlotCopy | None:
        """Copy a slot's first `length` positions; None if there is no room."""
        nbytes = self._slots.copy_bytes(length)
        offset = self._arena.take(nbytes)
        if offset is None:
            return None
        self._slots.save(slot, length, self._address + offset)
        return SlotCopy(length, nbytes, offset)

    def restore(self, slot: int, prefix: Prefix) -> None:
        """Write a prefix into a slot."""
        address = self._address + prefix.copy.place
        self._slots.restore(slot, prefix.length, address, prefix.copy.length)

    def drop(self, copy: SlotCopy) -> None:
        """Give a copy's room back; steps in flight have read it when it is written again."""
        self._arena.give_back(copy.place, copy.nbytes)
