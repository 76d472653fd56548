"""NVFP4 fake quantization on the CPU, where ModelOpt has kernels for GPUs alone.

It is installed under ModelOpt's own operator, so that a model that ModelOpt quantized runs
unchanged. The numbers are those of the exported checkpoint: a weight comes out as code × block
scale × global scale, bit for bit.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import torch

BLOCK = 16
E2M1_MAX, E4M3_MAX, E4M3_LEAST = 6.0, 448.0, 2.0**-9
_NVFP4 = (
    BLOCK,
    4,
    2,
    8,
    4,
)  # block, bits and exponent bits of an element, bits and exponent bits of a block scale


@cache
def install() -> None:
    """Give ModelOpt's NVFP4 operator its CPU kernel; in this process, from now on."""
    import modelopt.torch.quantization.tensor_quant  # noqa: F401 - declares the operator

    make_library: Any = torch.library.Library  # torch has no types for it
    library = make_library("tensorrt", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # torch says that a kernel is replaced, which is the intention
        library.impl("dynamic_block_quantize_op", _operator, "CPU", allow_override=True)
    _LIBRARIES.append(library)


_LIBRARIES: list[Any] = []  # a Library takes its kernels along when it is collected


def _operator(
    values: torch.Tensor,
    block: int,
    amax: torch.Tensor,
    bits: int,
    exponent_bits: int,
    scale_bits: int,
    scale_exponent_bits: int,
) -> torch.Tensor:
    asked = (block, bits, exponent_bits, scale_bits, scale_exponent_bits)
    if asked != _NVFP4:
        raise NotImplementedError(
            f"the CPU kernel quantizes to NVFP4, {_NVFP4}, and was asked for {asked}"
        )
    return fake_quantize(values, amax)


def fake_quantize(values: torch.Tensor, amax: torch.Tensor) -> torch.Tensor:
    """Round to NVFP4 and back: `values` [..., 16·n] in any float type, `amax` the tensor's largest
    magnitude.

    Each block of 16 has a scale block maximum ÷ 6, in E4M3 relative to the global scale amax ÷ (6 ·
    448) and at least its smallest number; a block of zeros stays one. Elements round half to even.
    """
    global_scale = amax.float().max() / (E2M1_MAX * E4M3_MAX)
    blocks = values.float().reshape(*values.shape[:-1], -1, BLOCK)
    relative = blocks.abs().amax(-1, keepdim=True) / (E2M1_MAX * global_scale)
    relative = relative.clamp(E4M3_LEAST, E4M3_MAX).to(torch.float8_e4m3fn).float()
    step = relative * global_scale
    return (_round_to_e2m1(blocks / step) * step).reshape(values.shape).to(values.dtype)


def _round_to_e2m1(values: torch.Tensor) -> torch.Tensor:
    """The nearest of 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives; `round` is half to even, as
    E2M1's last bit is.
    """
    magnitude = values.abs()
    spacing = torch.where(magnitude < 2, 0.5, torch.where(magnitude < 4, 1.0, 2.0))
    return ((magnitude / spacing).round() * spacing).clamp(max=E2M1_MAX).copysign(values)
