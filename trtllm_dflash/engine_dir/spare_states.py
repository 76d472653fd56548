"""Recurrent caches that a GPU session holds beside those of its slots."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from trtllm_dflash.engine_dir.batch_ladder import BatchLadder
from trtllm_dflash.engine_dir.io_tensors import IoTensor
from trtllm_dflash.hardware.cuda import ALIGNMENT


def is_unaligned(cache: IoTensor) -> bool:
    """Tell whether a recurrent cache begins, in other slots than the first, where TensorRT takes no
    address. A prompt's step then works on a copy.
    """
    return bool(cache.recurrent) and cache.slot_bytes % ALIGNMENT != 0


@dataclass(frozen=True)
class SpareStates:
    """Bytes of one slot's recurrent caches: all, which padded steps set aside, and unaligned ones.

    A padded step overwrites the states of prompts that do not decode yet, so it keeps copies.
    """

    all_bytes: int = 0
    unaligned_bytes: int = 0

    @classmethod
    def of(cls, io: Iterable[IoTensor]) -> SpareStates:
        """Return those of an engine's inputs and outputs."""
        caches = [tensor for tensor in io if tensor.direction == "input" and tensor.recurrent]
        unaligned = filter(is_unaligned, caches)
        return cls(
            sum(cache.slot_bytes for cache in caches),
            sum(cache.slot_bytes for cache in unaligned),
        )

    def nbytes(self, slots: int) -> int:
        """Return what a session of so many slots allocates for them."""
        unaligned = self.unaligned_bytes if slots > 1 else 0
        return BatchLadder(slots).most_padded * self.all_bytes + unaligned
