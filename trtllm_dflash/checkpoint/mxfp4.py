"""Experts in MXFP4, as gpt-oss is published: their tensors, their values, and the same as NVFP4.

All experts of a layer are one tensor, here called by the name that it would have unquantized:

| tensor | dtype | shape |
|---|---|---|
| <name>_blocks | U8 | [experts, out, in/32, 16], two E2M1 values a byte, the low half first |
| <name>_scales | U8 | [experts, out, in/32], E8M0: a byte s stands for 2^(s-127) |

A weight is E2M1 · 2^(s-127). Unquantized, the tensor <name> is [experts, in, out].

Source of the format: OCP Microscaling Formats (MX) v1.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from trtllm_dflash.checkpoint.dequantize import E2M1_PAIRS
from trtllm_dflash.checkpoint.formats import MXFP4, NVFP4_GROUP_SIZE, Quantization
from trtllm_dflash.checkpoint.safetensors import TensorInfo

BLOCKS = "_blocks"
SCALES = "_scales"
MXFP4_GROUP_SIZE = MXFP4.group_size or 0
# 6 · 2^125 is below float32's largest number, 6 · 2^126 beyond it; 255 is E8M0's NaN.
MAX_EXPONENT_BYTE = 127 + 125
_BIAS = 127

# E4M3's powers of two: 2^-9 (subnormal) to 2^8.
_LARGEST = 8
_SPREAD = 17
_LEAST_NORMAL = -126  # exponent of float32: compilers may flush what is below to zero
_CHUNK_BLOCKS = 1 << 16  # some MiB in float32
_SIGNLESS = 0x77  # a byte's two E2M1 values without their signs


def expert_errors(
    infos: Mapping[str, TensorInfo],
    experts: Mapping[str, tuple[int, ...]],
    quantization: Quantization,
) -> list[str]:
    """List contradictions between the experts' tensors and the stated quantization.

    `experts` has their shapes [E, in, out] by name. Missing or misshapen tensors are left to the
    accounting.
    """
    if quantization.mxfp4 and not experts:
        return [
            "quant_method is mxfp4, in which only the experts of GptOssForCausalLM can be stored"
        ]
    errors = []
    for name, (_, columns, _) in experts.items():
        if quantization.format_of_experts(name) is None:
            if f"{name}{BLOCKS}" in infos:
                pattern = quantization.excluded_by(name)
                why = (
                    f"{name} is excluded by {pattern!r}"
                    if pattern
                    else "nothing says that experts are MXFP4"
                )
                errors.append(
                    f"{name}{BLOCKS} is there, but {why}: quantization_config's quant_method does"
                )
        elif name in infos:
            errors.append(
                f"{name} is {infos[name].dtype}, not MXFP4: add it to modules_to_not_convert"
            )
        elif columns % MXFP4_GROUP_SIZE:
            size = f"no multiple of the block of {MXFP4_GROUP_SIZE}"
            errors.append(f"{name} has {columns} input features, {size}")
    return errors


def dequantized_experts(
    tensors: Mapping[str, TensorInfo], name: str, dtype: npt.DTypeLike = np.float32
) -> npt.NDArray[Any]:
    """Return the experts `name`, [experts, out, in], exact in float32 and in bfloat16.

    Memory: the result.
    """
    blocks, scales = (tensors[f"{name}{ending}"].array() for ending in (BLOCKS, SCALES))
    count, rows, num_blocks, _ = blocks.shape
    values = np.empty((count * rows * num_blocks, MXFP4_GROUP_SIZE), dtype)
    packed = blocks.reshape(len(values), -1)
    exponents = scales.reshape(-1)
    for start in range(0, len(values), _CHUNK_BLOCKS):
        part = slice(start, start + _CHUNK_BLOCKS)
        scale = np.ldexp(np.float32(1), exponents[part].astype(np.int32) - _BIAS)
        values[part] = E2M1_PAIRS[packed[part]].reshape(len(scale), -1) * scale[:, None]
    return values.reshape(count, rows, -1)


def nvfp4_scale(tensors: Mapping[str, TensorInfo], name: str) -> float | None:
    """Return the global scale under which NVFP4 equals the MXFP4 experts `name`, None if none is.

    The packed values stay. The largest exponent k of a block becomes E4M3's largest power of two,
    so the global scale is 2^(k-8). A block of exponent j gets 2^(j-k+8) for both of its halves,
    which E4M3 has down to 2^-9. So it works for exponents at most 17 apart. A block of zeros needs
    no exponent of its own.
    """
    exponents = tensors[f"{name}{SCALES}"].array().reshape(-1)
    blocks = tensors[f"{name}{BLOCKS}"].array().reshape(len(exponents), -1)
    largest = int(exponents.max()) - _BIAS
    small = np.flatnonzero(exponents < largest - _SPREAD + _BIAS)
    if any((blocks[part] & _SIGNLESS).any() for part in _parts(small)):
        return None
    if largest - _SPREAD < _LEAST_NORMAL:
        return None
    return float(2.0 ** (largest - _LARGEST))


def nvfp4_block_scales(
    tensors: Mapping[str, TensorInfo], name: str, scale: float
) -> npt.NDArray[Any]:
    """Return the block scales that go with `nvfp4_scale`, E4M3 [experts, out, in/16]."""
    exponents = tensors[f"{name}{SCALES}"].array()
    shift = _BIAS + int(np.log2(scale))
    powers = np.ldexp(1.0, np.clip(np.arange(256) - shift, _LARGEST - _SPREAD, _LARGEST))
    of_byte: npt.NDArray[Any] = powers.astype(ml_dtypes.float8_e4m3fn)
    scales: npt.NDArray[Any] = of_byte[
        np.repeat(exponents, MXFP4_GROUP_SIZE // NVFP4_GROUP_SIZE, axis=-1)
    ]
    return scales


def _parts(indices: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
    return [
        indices[start : start + _CHUNK_BLOCKS]
        for start in range(0, len(indices), _CHUNK_BLOCKS)
    ]
