"""MXFP4 for the experts of gpt-oss: blocks of 32 numbers of 4 bits that share a power of two.

It is the format in which they were trained and are published (`checkpoint.mxfp4` has the layout).
What was dequantized from such a checkpoint gets the same numbers back.
"""

from __future__ import annotations

from typing import Any

import torch

from trtllm_dflash.checkpoint.mxfp4 import (
    BLOCKS,
    MAX_EXPONENT_BYTE,
    MXFP4_GROUP_SIZE,
    SCALES,
)
from trtllm_dflash.quantize.experts import MODULE
from trtllm_dflash.quantize.nvfp4_cpu import E2M1_MAX, round_to_e2m1

_BIAS = 127
_LEAST = -_BIAS
_LARGEST = MAX_EXPONENT_BYTE - _BIAS
_LEVELS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # in E2M1's order; the negative ones follow
_NAMES = ("gate_up_proj", "down_proj")


def describe() -> dict[str, Any]:
    """Return the `quantization_config` of such a checkpoint; only experts are quantized."""
    return {
        "quant_method": "mxfp4",
        "modules_to_not_convert": [
            "model.layers.*.self_attn",
            "model.layers.*.mlp.router",
            "model.embed_tokens",
            "lm_head",
        ],
    }


def pack_experts(layer: Any, prefix: str) -> dict[str, torch.Tensor]:
    """Return a layer's packed experts by their checkpoint names; `prefix` is its, with a dot.

    The layer stays as it is.
    """
    packed = {}
    for name in _NAMES:
        weight = layer.get_submodule(MODULE).get_parameter(name)
        blocks, scales = zip(*(encode(expert.T) for expert in weight), strict=True)
        packed[f"{prefix}{MODULE}.{name}{BLOCKS}"] = torch.stack(blocks).cpu()
        packed[f"{prefix}{MODULE}.{name}{SCALES}"] = torch.stack(scales).cpu()
    return packed


def round_experts(layer: Any, packed: dict[str, torch.Tensor], prefix: str) -> None:
    """Give a layer the experts that `pack_experts` returned, dequantized."""
    for name in _NAMES:
        weight = layer.get_submodule(MODULE).get_parameter(name)
        full = f"{prefix}{MODULE}.{name}"
        parts = zip(weight, packed[f"{full}{BLOCKS}"], packed[f"{full}{SCALES}"], strict=True)
        for expert, blocks, scales in parts:
            expert.copy_(decode(blocks, scales).T)


def encode(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a matrix [out, in] as blocks [out, in/32, 16] and E8M0 scales [out, in/32].

    A block's exponent brings its largest magnitude to 4 or more. Where that is beyond 6, E2M1's
    largest number, a block may be cut, or have the next exponent and half as fine steps. The
    smaller sum of squared errors decides. Ties round to even.
    """
    groups = values.float().reshape(len(values), -1, MXFP4_GROUP_SIZE)
    largest = groups.abs().amax(-1)
    _, exponents = torch.frexp(largest)  # largest is in [2^(exponents - 1), 2^exponents)
    exponents = torch.where(largest > 0, exponents - 3, _LEAST).clamp(_LEAST, _LARGEST)
    rounded = _round(groups, exponents)
    beyond = largest > E2M1_MAX * _power(exponents)
    next_exponents = (exponents[beyond] + 1).clamp(max=_LARGEST)
    coarser = _round(groups[beyond], next_exponents)
    cut = _error(groups[beyond], rounded[beyond], exponents[beyond])
    # Both in units of the first exponent; the second's unit is twice as large.
    is_better = 4 * _error(groups[beyond], coarser, next_exponents) < cut
    rounded[beyond] = torch.where(is_better[:, None], coarser, rounded[beyond])
    exponents[beyond] = torch.where(is_better, next_exponents, exponents[beyond])
    return _pack(rounded), (exponents + _BIAS).to(torch.uint8)


def decode(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Return the numbers [out, in], float32, of blocks [out, in/32, 16] and their scales."""
    levels = torch.tensor((*_LEVELS, *(-level for level in _LEVELS)), device=blocks.device)
    halves = torch.stack((blocks & 15, blocks >> 4), dim=-1).flatten(-2)
    values = levels[halves.int()] * _power(scales.int() - _BIAS)[..., None]
    return values.flatten(-2)


def _round(groups: torch.Tensor, exponents: torch.Tensor) -> torch.Tensor:
    """Return the E2M1 numbers of groups [..., 32] under their exponents [...]."""
    return round_to_e2m1(groups * _power(-exponents)[..., None])


def _error(
    groups: torch.Tensor, rounded: torch.Tensor, exponents: torch.Tensor
) -> torch.Tensor:
    """Return the sum of squared errors of each group, in units of 2^exponent."""
    return (groups * _power(-exponents)[..., None] - rounded).square().sum(-1)


def _power(exponents: torch.Tensor) -> torch.Tensor:
    """Return 2^exponents in float32."""
    return torch.ldexp(torch.ones_like(exponents, dtype=torch.float32), exponents)


def _pack(rounded: torch.Tensor) -> torch.Tensor:
    """Return E2M1 numbers [..., 32] as bytes [..., 16], the even ones in the low half."""
    doubled = (2 * rounded).to(torch.int8)  # 0, 1, 2, 3, 4, 6, 8 or 12
    size = doubled.abs()
    order = torch.where(size < 4, size, torch.where(size < 8, size // 2 + 2, size // 4 + 4))
    halves = (order + 8 * (doubled < 0)).to(torch.uint8)
    return halves[..., 0::2] | halves[..., 1::2] << 4
