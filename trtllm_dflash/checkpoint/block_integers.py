"""Weights as small integers by block, for products on a CPU.

A row of a weight is cut into blocks of 32 numbers. Each has a scale in float32 and a zero point:
weight ≈ (code - zero point) · scale. A code is an unsigned integer of 8 or 4 bits. Each block is
rounded in two ways, and keeps the one whose squared error is smaller:

    symmetric   the zero point is in the middle of the codes, the scale is max|w| / (2^(bits-1) - 1)
    shifted     the codes reach from the block's least number to its largest, zero included

Either way a weight is at most half a scale from what stands for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trtllm_dflash.checkpoint.safetensors import TensorInfo

BLOCK_LENGTH = 32  # weights that share a scale
BITS = {"int8": 8, "int4": 4}  # of a linear's codes, by TensorRT-LLM's names
_SCALE_BYTES = 4
_ROWS_AT_ONCE = 2048  # whose float32 copies are in memory

_TABLES = ("embed_tokens.weight", "lm_head.weight")
_PARTS_OF_DELTA_NETS = ("in_proj_qkv.weight", "in_proj_qkvz.weight", "in_proj_z.weight")
_EXPERTS, _FUSED_EXPERTS = ".experts.", ("gate_up_proj", "down_proj")
_LINEARS = ("_proj.weight", "_projection.weight", "fc.weight", *_PARTS_OF_DELTA_NETS, *_TABLES)


@dataclass(frozen=True)
class BlockIntegers:
    """A weight [N, K] in codes uint8 [N, B, 4·bits], scales float32 [N, B], zero points [N, B].

    B is the number of blocks in a row, the last one filled up with zeros. Of 4 bits a byte has two
    codes, the first in its low half. Zero points are uint8, one in each.
    """

    packed: NDArray[np.uint8]
    scales: NDArray[np.float32]
    zero_points: NDArray[np.uint8]

    @classmethod
    def of(cls, weight: NDArray[np.float32], bits: int) -> BlockIntegers:
        """Round a weight [N, K] to codes of so many bits."""
        starts = range(0, len(weight), _ROWS_AT_ONCE)
        return cls.of_parts((weight[start : start + _ROWS_AT_ONCE] for start in starts), bits)

    @classmethod
    def of_parts(cls, weights: Iterable[NDArray[np.float32]], bits: int) -> BlockIntegers:
        """Round weights [N, K], and put them below each other; one is in memory at a time."""
        parts = [_rounded(_by_block(weight.astype(np.float32)), bits) for weight in weights]
        packed, scales, zero_points = (
            np.concatenate(part) for part in zip(*parts, strict=True)
        )
        if bits == 4:
            packed = packed[..., ::2] | packed[..., 1::2] << 4
        return cls(packed, scales, zero_points)

    def packed_zero_points(self) -> NDArray[np.uint8]:
        """Return the zero points as MatMulNBits takes them: of 4 bits two in a byte."""
        if self.packed.shape[-1] == BLOCK_LENGTH:
            return self.zero_points
        even = np.pad(self.zero_points, ((0, 0), (0, self.zero_points.shape[1] % 2)))
        return (even[:, ::2] | even[:, 1::2] << 4).astype(np.uint8)

    def dequantized(self, columns: int) -> NDArray[np.float32]:
        """Return the weight [N, columns] that this stands for."""
        packed = self.packed
        if packed.shape[-1] < BLOCK_LENGTH:
            packed = np.stack([packed & 15, packed >> 4], axis=-1).reshape(
                *packed.shape[:2], BLOCK_LENGTH
            )
        shifted = packed.astype(np.float32) - self.zero_points[..., None]
        weight: NDArray[np.float32] = shifted * self.scales[..., None]
        return weight.reshape(len(weight), -1)[:, :columns]


def num_blocks(columns: int) -> int:
    """Return the number of blocks in a row."""
    return -(-columns // BLOCK_LENGTH)


def is_rounded(name: str, info: TensorInfo, *, experts: bool = False) -> bool:
    """Tell whether an engine has this tensor in block integers: of linears, head and embedding.

    So are those of experts, if `experts` are. Small linears stay as they are by which a model
    decides: routers, and gates of experts and states.
    """
    if _EXPERTS in name:
        return experts and len(info.shape) > 1 and name.endswith((*_FUSED_EXPERTS, *_LINEARS))
    return len(info.shape) == 2 and name.endswith(_LINEARS)


def experts_are_rounded(hidden_size: int, intermediate_size: int) -> bool:
    """Tell whether experts of these sizes can be block integers: of whole blocks alone."""
    return hidden_size % BLOCK_LENGTH == 0 and intermediate_size % BLOCK_LENGTH == 0


def copies_of_rows(precision: str) -> int:
    """Return how many times a row goes to each of its experts: `graph.integer_experts` says why."""
    return 2 if BITS[precision] == 4 else 1


def rows_and_columns(info: TensorInfo) -> tuple[int, int]:
    """Return the sizes of a weight [out, in], or of one of all experts, [experts, in, out]."""
    if len(info.shape) == 3:
        count, columns, rows = info.shape
        return count * rows, columns
    rows, columns = info.shape
    return rows, columns


def bits_of(name: str, precision: str) -> int:
    """Return the bits of a tensor's codes: 8 of head and embedding, which 4 bits change most."""
    return BITS["int8" if name.endswith(_TABLES) else precision]


def block_integer_bytes(rows: int, columns: int, bits: int) -> int:
    """Return the bytes of a weight in block integers."""
    blocks = num_blocks(columns)
    packed = blocks * BLOCK_LENGTH * bits // 8
    zero_points = -(-blocks * bits // 8)
    return rows * (packed + blocks * _SCALE_BYTES + zero_points)


def _by_block(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    count, columns = rows.shape
    filled = np.zeros((count, num_blocks(columns) * BLOCK_LENGTH), np.float32)
    filled[:, :columns] = rows
    return filled.reshape(count, -1, BLOCK_LENGTH)


def _rounded(
    blocks: NDArray[np.float32], bits: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8]]:
    """Return codes, scales and zero points of blocks [N, B, 32], of each block the best."""
    low = np.minimum(blocks.min(axis=-1), 0)
    high = np.maximum(blocks.max(axis=-1), 0)
    top = (1 << bits) - 1
    middle = 1 << (bits - 1)
    scale = _no_zero(np.maximum(-low, high) / np.float32(middle - 1))
    symmetric = _Coded.of(blocks, scale, np.full_like(low, middle), top)
    scale = _no_zero((high - low) / np.float32(top))
    best = symmetric.or_better(_Coded.of(blocks, scale, np.rint(-low / scale), top))
    return best.packed.astype(np.uint8), best.scales, best.zero_points.astype(np.uint8)


@dataclass(frozen=True)
class _Coded:
    """Blocks [N, B, 32] in codes, and the squared error of each block."""

    packed: NDArray[np.float32]
    scales: NDArray[np.float32]
    zero_points: NDArray[np.float32]
    error: NDArray[np.float32]

    @classmethod
    def of(
        cls,
        blocks: NDArray[np.float32],
        scales: NDArray[np.float32],
        zero_points: NDArray[np.float32],
        top: int,
    ) -> _Coded:
        """Round the blocks to codes 0 … top."""
        shift = zero_points[..., None]
        packed = np.clip(np.rint(blocks / scales[..., None]) + shift, 0, top)
        difference = (packed - shift) * scales[..., None] - blocks
        return cls(packed, scales, zero_points, np.square(difference).sum(axis=-1))

    def or_better(self, other: _Coded) -> _Coded:
        """Return of each block the codes whose error is smaller."""
        take = other.error < self.error
        return _Coded(
            np.where(take[..., None], other.packed, self.packed),
            np.where(take, other.scales, self.scales),
            np.where(take, other.zero_points, self.zero_points),
            np.where(take, other.error, self.error),
        )


def _no_zero(scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the scales, 1 for those of blocks that are all zeros (or too small for any)."""
    positive: NDArray[np.float32] = np.where(scales > 0, scales, np.float32(1))
    return positive
