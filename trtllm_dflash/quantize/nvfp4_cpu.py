"""NVFP4 fake quantization on the CPU; ModelOpt has kernels for GPUs only.

It is installed as ModelOpt's own operator, so that a model that ModelOpt quantized runs unchanged.
Weights come out as in the exported checkpoint: packed value × block scale × global scale, bit for
bit.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import torch

from trtllm_dflash.checkpoint.formats import NVFP4_GROUP_SIZE

E2M1_MAX = 6.0
E4M3_MAX = 448.0
E4M3_LEAST = 2.0**-9
# Group size, bits and exponent bits of an element, bits and exponent bits of a group's scale.
_NVFP4 = (NVFP4_GROUP_SIZE, 4, 2, 8, 4)


@cache
def install() -> None:
    """Give ModelOpt's NVFP4 operator its CPU kernel, in this process."""
    import modelopt.torch.quantization.tensor_quant  # noqa: F401 - declares the operator

    make_library: Any = torch.library.Library  # torch has no types for it
    library = make_library("tensorrt", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that a kernel is replaced
        library.impl("dynamic_block_quantize_op", _operator, "CPU", allow_override=True)
    _LIBRARIES.append(library)


_LIBRARIES: list[Any] = []  # kernels end with their Library


def _operator(
    values: torch.Tensor,
    group_size: int,
    amax: torch.Tensor,
    bits: int,
    exponent_bits: int,
    scale_bits: int,
    scale_exponent_bits: int,
) -> torch.Tensor:
    """Quantize as ModelOpt's operator does; other formats raise NotImplementedError."""
    requested = (group_size, bits, exponent_bits, scale_bits, scale_exponent_bits)
    if requested != _NVFP4:
        raise NotImplementedError(
            f"the CPU kernel quantizes to NVFP4, expected {_NVFP4}, got {requested}"
        )
    return fake_quantize(values, amax)


def fake_quantize(values: torch.Tensor, amax: torch.Tensor) -> torch.Tensor:
    """Round to NVFP4 and back.

    `values` [..., 16·n] has any float type; `amax` is the tensor's largest magnitude. The global
    scale is amax ÷ (6 · 448). Each group of 16 has the scale group maximum ÷ 6, stored in E4M3
    relative to the global scale, and at least its smallest number. A group of zeros stays one.
    Elements round half to even.
    """
    global_scale = amax.float().max() / (E2M1_MAX * E4M3_MAX)
    groups = values.float().reshape(*values.shape[:-1], -1, NVFP4_GROUP_SIZE)
    relative = groups.abs().amax(-1, keepdim=True) / (E2M1_MAX * global_scale)
    relative = relative.clamp(E4M3_LEAST, E4M3_MAX).to(torch.float8_e4m3fn).float()
    step = relative * global_scale
    return (round_to_e2m1(groups / step) * step).reshape(values.shape).to(values.dtype)


def round_to_e2m1(values: torch.Tensor) -> torch.Tensor:
    """Return the nearest of 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives.

    Ties go to the even last bit, as with `round`.
    """
    magnitude = values.abs()
    spacing = torch.where(magnitude < 2, 0.5, torch.where(magnitude < 4, 1.0, 2.0))
    return ((magnitude / spacing).round() * spacing).clamp(max=E2M1_MAX).copysign(values)
