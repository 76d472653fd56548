"""Copies of what a slot holds of a sequence, from which another slot can go on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from trtllm_dflash.engine_dir.config import EngineConfig


@dataclass(frozen=True, eq=False)
class SlotCopy:
    """All caches of a sequence's first `length` positions, in memory of the session's own."""

    length: int
    nbytes: int
    place: Any  # the session's own business


class Prefix(NamedTuple):
    """What a new sequence goes on from: the first `length` positions of a copy."""

    copy: SlotCopy
    length: int


def is_cut_anywhere(config: EngineConfig) -> bool:
    """Tell whether a prefix may be any part of a copy.

    A state is that of one position, and a ring has forgotten what it had before the last ones.
    Engines with either go on from a copy's whole length alone.
    """
    caches = [tensor for tensor in config.io if tensor.cache and tensor.direction == "input"]
    return not any(
        tensor.recurrent or int(tensor.shape[2]) < config.cache_len for tensor in caches
    )
