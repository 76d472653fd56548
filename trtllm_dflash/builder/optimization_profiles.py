"""The shapes that a GPU engine is compiled for: profiles of prefill and decode, or one of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trtllm_dflash.engine_dir.io_tensors import BATCH, BLOCK, CONTEXT, ROWS, WIDTH, IoTensor
from trtllm_dflash.options.resolved_build import ResolvedBuild

Range = tuple[int, int, int]  # smallest, the one to optimize for, largest
Shape = tuple[int, ...]
Profile = dict[str, tuple[Shape, Shape, Shape]]


# The backend whose engines choose their matrix products when they run, by the step's own shape.
_CHOOSES_LATE = "tensorrt_rtx"


def num_profiles(sizes: ResolvedBuild) -> int:
    """Return how many profiles an engine has: 1 where its prefill covers its decoding."""
    return 1 if sizes.max_batch_size == 1 and sizes.backend == _CHOOSES_LATE else 2


def profiles(io: Sequence[IoTensor], sizes: ResolvedBuild) -> tuple[Profile, ...]:
    """Return the prefill profile and the decode profile, or one where it serves both.

    Prefill is one slot and a step of any width. Decode is all slots and a step up to a block wide.
    It is optimized for draft_len, and takes fewer drafts (none: plain decoding) and more. A profile
    maps an input's name to its smallest, usual and largest shape.

    Each profile has kernels of its own in the engine. TensorRT-RTX also has a layout of weights for
    steps of exactly one row, so a second profile of such would hold linears a second time. Its own
    attention may keep the scores twice in a profile that is optimized for few rows. So without our
    kernels the profile of both is optimized for a prompt.
    """
    block = sizes.block_size
    batch = sizes.max_batch_size
    widest = sizes.max_num_tokens
    cache_len = sizes.cache_len
    usual_len = max(cache_len // 2, 1)
    usual_rows = 1 + sizes.draft_len
    prefill = {
        BATCH: (1, 1, 1),
        WIDTH: (1, widest, widest),
        ROWS: (1, 1, block),
        CONTEXT: (1, usual_len, cache_len),
        BLOCK: (block, block, block),
    }
    if num_profiles(sizes) == 1:
        usual_width = usual_rows if sizes.plugins else widest
        both = {WIDTH: (1, usual_width, widest), ROWS: (1, usual_rows, block)}
        return (_profile(io, prefill | both),)
    at_least = 2 if batch == 1 else 1  # so that a step may have two rows
    decode = {
        BATCH: (1, batch, batch),
        WIDTH: (1, usual_rows, min(max(block, at_least), widest)),
        ROWS: (1, usual_rows, block),
        CONTEXT: (block, usual_len, cache_len),
        BLOCK: (block, block, block),
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
