"""The shapes that a GPU engine is compiled for: one profile for prefill, one for decode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trtllm_dflash.engine_dir.io_tensors import BATCH, CONTEXT, ROWS, WIDTH, IoTensor
from trtllm_dflash.options.resolved_build import ResolvedBuild

Range = tuple[int, int, int]  # smallest, the one to optimize for, largest
Shape = tuple[int, ...]
Profile = dict[str, tuple[Shape, Shape, Shape]]


def profiles(io: Sequence[IoTensor], sizes: ResolvedBuild) -> tuple[Profile, Profile]:
    """Return the prefill profile and the decode profile.

    Prefill is one slot and a step of any width. Decode is all slots and a step up to a block wide.
    It is optimized for draft_len, and takes fewer drafts (none: plain decoding) and more. A profile
    maps an input's name to its smallest, usual and largest shape.
    """
    block = sizes.block_size
    batch = sizes.max_batch_size
    widest = sizes.max_num_tokens
    cache_len = sizes.cache_len
    usual_len = max(cache_len // 2, 1)
    verified = (1, 1 + sizes.draft_len, block)
    prefill = {
        BATCH: (1, 1, 1),
        WIDTH: (1, widest, widest),
        ROWS: (1, 1, block),
        CONTEXT: (1, usual_len, cache_len),
    }
    decode = {
        BATCH: (1, batch, batch),
        WIDTH: verified,
        ROWS: verified,
        CONTEXT: (block, usual_len, cache_len),
    }
    return _profile(io, prefill), _profile(io, decode)


def _profile(io: Sequence[IoTensor], symbols: Mapping[str, Range]) -> Profile:
    profile = {}
    for tensor in io:
        if tensor.direction == "input":
            profile[tensor.name] = (
                _shape(tensor, symbols, 0),
                _shape(tensor, symbols, 1),
                _shape(tensor, symbols, 2),
            )
    return profile


def _shape(tensor: IoTensor, symbols: Mapping[str, Range], bound: int) -> Shape:
    def resolve(size: int | str) -> int:
        return symbols[size][bound] if isinstance(size, str) else size

    return tuple(map(resolve, tensor.shape))
