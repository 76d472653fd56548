"""Dequantized weights: float32, each product rounded as the formats' definition rounds it.

FP8: E4M3(weight) · weight_scale, which is one number, one for each row, or one for each block of
128 x 128. NVFP4: E2M1(weight) · (E4M3(weight_scale) · weight_scale_2).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from trtllm_dflash.checkpoint.formats import WeightFormat
from trtllm_dflash.checkpoint.safetensors import TensorInfo

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
# Both values that a byte packs, the one of its low half first.
E2M1_PAIRS = np.stack([np.tile(E2M1, 16), np.repeat(E2M1, 16)], axis=1)

_CHUNK_BYTES = 1 << 18  # packed bytes at a time: numpy needs 16 bytes and more for each


def scalar(info: TensorInfo) -> float:
    """Return the value of a scale tensor with one element, by which codes are multiplied.

    A stored divisor is inverted in float32.
    """
    value = np.float32(info.array().reshape(-1)[0])
    with np.errstate(all="ignore"):  # an overflow is infinite, which check_finite refuses
        return float(np.float32(1) / value if info.is_divisor else value)


def row_scales(info: TensorInfo, num_rows: int) -> npt.NDArray[np.float32]:
    """Return the scale of each row of a weight, float32 [num_rows], from one or as many."""
    scales = info.array().reshape(-1).astype(np.float32)
    return np.ascontiguousarray(np.broadcast_to(scales, (num_rows,)))


def dequantized(
    tensors: Mapping[str, TensorInfo],
    module: str,
    fmt: WeightFormat,
    rows: npt.NDArray[np.int64] | None = None,
) -> npt.NDArray[np.float32]:
    """Return the weight of a quantized linear, or its `rows`, float32 [out, in].

    Memory: the result and some MiB.
    """
    stored = tensors[f"{module}.weight"].array()
    chosen: Any = slice(None) if rows is None else rows
    packed = stored[chosen]
    scale = tensors[f"{module}.weight_scale"]
    if fmt.group_size is None:
        whole: npt.NDArray[np.float32] = packed.astype(np.float32)
        if fmt.block_size is not None:
            _scale_blocks(whole, scale, np.arange(len(stored))[chosen], fmt.block_size)
        elif fmt.has_row_scales:
            whole *= row_scales(scale, len(stored))[chosen, None]
        else:
            whole *= np.float32(scalar(scale))
        return whole
    block_scales = scale.array()[chosen]
    scale_2 = np.float32(scalar(tensors[f"{module}.weight_scale_2"]))
    weight = np.empty((len(packed), 2 * packed.shape[1]), np.float32)
    step = max(1, _CHUNK_BYTES // packed.shape[1])
    for start in range(0, len(packed), step):
        part = slice(start, start + step)
        scales = block_scales[part].astype(np.float32) * scale_2
        values = E2M1_PAIRS[packed[part]]
        blocks = values.reshape(*scales.shape, fmt.group_size)
        weight[part] = (blocks * scales[:, :, None]).reshape(len(scales), -1)
    return weight


def _scale_blocks(
    values: npt.NDArray[np.float32],
    scale: TensorInfo,
    rows: npt.NDArray[np.int64],
    size: int,
) -> None:
    """Multiply `values`, which are `rows` of a weight, by the scales of its blocks [size, size].

    The last blocks of both axes may be partial.
    """
    columns = values.shape[1]
    scales = scale.array().astype(np.float32).reshape(-1, -(-columns // size))
    for start in range(0, len(rows), size):
        part = slice(start, start + size)
        values[part] *= np.repeat(scales[rows[part] // size], size, axis=1)[:, :columns]
