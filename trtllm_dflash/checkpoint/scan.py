"""Checks over all bytes of a tensor that hold one chunk in memory, whatever the tensor's size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from trtllm_dflash.checkpoint.safetensors import TensorInfo
from trtllm_dflash.errors import CheckpointError

CHUNK_BYTES = 8 << 20

# dtype -> (an integer of its width, the bits that are all set in NaN and Inf, and in nothing else).
# Integers, since for bfloat16 numpy's isfinite goes element by element.
_EXPONENTS: Mapping[str, tuple[Any, int]] = {
    "F32": (np.uint32, 0x7F800000),
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
    "F8_E4M3": (np.uint8, 0x7F),  # no Inf, and NaN is all bits set
}

Index = tuple[int, ...]
Chunk = npt.NDArray[Any]


def first_nonfinite(
    info: TensorInfo, *, progress: Callable[[int], None] | None = None
) -> Index | None:
    """Return the index of the first NaN or Inf, None if all elements are finite."""
    integer, exponent = _EXPONENTS[info.dtype]

    def is_bad(chunk: Chunk) -> Chunk:
        bad: Chunk = (chunk.view(integer) & exponent) == exponent
        return bad

    return _find_first(info, is_bad, progress)


def first_nonpositive(info: TensorInfo, *, or_zero: bool = False) -> Index | None:
    """Return the index of the first element that is not above zero, None if all are.

    NaN is not. With `or_zero`, zero is right too.
    """

    def is_bad(chunk: Chunk) -> Chunk:
        if or_zero:
            return ~(chunk.astype(np.float32) >= 0)
        if info.dtype != "F8_E4M3":
            return ~(chunk > 0)
        # Bytes from 1 to 0x7E are above zero; numpy would compare the values one by one.
        return (chunk.view(np.uint8) - 1) >= 0x7E

    return _find_first(info, is_bad)


def first_above(info: TensorInfo, limit: int) -> Index | None:
    """Return the index of the first byte (U8) that is larger than `limit`, None if none is."""
    return _find_first(info, lambda chunk: chunk > limit)


def first_difference(left: TensorInfo, right: TensorInfo) -> Index | None:
    """Return the index of the first element that differs, None if none does.

    Both have the same shape, and may have different weight dtypes.
    """
    for (start, ours), (_, theirs) in zip(_chunks(left), _chunks(right), strict=True):
        differs = ours.astype(np.float32) != theirs.astype(np.float32)
        if differs.any():
            return _unravel(start + int(differs.argmax()), left.shape)
    return None


def check_same_values(
    copy: TensorInfo, original: TensorInfo, problem: str, advice: str
) -> None:
    """Raise CheckpointError, with the index, if a copy differs from its original anywhere."""
    index = first_difference(copy, original)
    if index is not None:
        raise CheckpointError(f"{problem} at index {list(index)}. {advice}")


def _find_first(
    info: TensorInfo,
    is_bad: Callable[[Chunk], Chunk],
    progress: Callable[[int], None] | None = None,
) -> Index | None:
    """Return the index of the first element of which `is_bad` is true, None if there is none.

    `progress` gets the bytes of each chunk without one.
    """
    for start, chunk in _chunks(info):
        bad = is_bad(chunk)
        if bad.any():
            return _unravel(start + int(bad.argmax()), info.shape)
        if progress is not None:
            progress(chunk.nbytes)
    return None


def _chunks(info: TensorInfo) -> Iterator[tuple[int, Chunk]]:
    """Yield (flat index of the first element, elements).

    They are read into a buffer, since pages of a memory map would pile up.
    """
    step = CHUNK_BYTES // 4
    count = info.nbytes // info.numpy_dtype.itemsize
    with info.path.open("rb") as file:
        file.seek(info.offset)
        for start in range(0, count, step):
            yield (
                start,
                np.fromfile(file, dtype=info.numpy_dtype, count=min(step, count - start)),
            )


def _unravel(flat: int, shape: tuple[int, ...]) -> Index:
    return tuple(int(index) for index in np.unravel_index(flat, shape))
