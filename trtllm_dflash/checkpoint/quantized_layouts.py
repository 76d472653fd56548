"""Quantized tensors of other makers, by the names that ModelOpt gives them.

| ModelOpt | fine-grained FP8 (Hugging Face) | compressed-tensors |
|---|---|---|
| weight | weight | weight, or weight_packed (4 bits) |
| weight_scale | weight_scale_inv | weight_scale |
| weight_scale_2 | | weight_global_scale, which divides |
| input_scale | activation_scale | input_scale, or input_global_scale, which divides |
| k_proj.k_scale, v_proj.v_scale | | k_scale, v_scale of the attention |

Nothing is read or copied. `weight_scale_inv` multiplies, despite its name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import prod

from trtllm_dflash.checkpoint.dtypes import DTYPE_BITS
from trtllm_dflash.checkpoint.formats import FP8_BLOCK_SIZE, Layout
from trtllm_dflash.checkpoint.safetensors import TensorInfo
from trtllm_dflash.errors import CheckpointError
from trtllm_dflash.models.base import TargetConfig

# How stored names end -> how ModelOpt's do. Each entry of one layout has another ending.
_ENDINGS: Mapping[Layout, Mapping[str, str]] = {
    Layout.MODELOPT: {},
    Layout.FINE_GRAINED_FP8: {
        ".weight_scale_inv": ".weight_scale",
        ".activation_scale": ".input_scale",
    },
    Layout.COMPRESSED_TENSORS: {
        ".weight_packed": ".weight",
        ".weight_global_scale": ".weight_scale_2",
        ".input_global_scale": ".input_scale",
        ".self_attn.k_scale": ".self_attn.k_proj.k_scale",
        ".self_attn.v_scale": ".self_attn.v_proj.v_scale",
    },
}
_DIVISORS = (".weight_global_scale", ".input_global_scale")
_STACKED_SCALE = re.compile(r"(.*\.mlp\.experts)\.(gate_up_proj|down_proj)_scale_inv")


def by_modelopts_names(
    infos: Mapping[str, TensorInfo], layout: Layout, where: str
) -> dict[str, TensorInfo]:
    """Return a checkpoint's tensors, those of quantized linears by ModelOpt's names.

    Raises: CheckpointError: for a tensor that is there under both names.
    """
    found = dict(infos)
    for stored, usual in _ENDINGS[layout].items():
        for name in [name for name in infos if name.endswith(stored)]:
            ours = name.removesuffix(stored) + usual
            if ours in infos:
                raise CheckpointError(
                    f"{where}: {name} and {ours} are both there, and a linear has one of them. Get"
                    " an intact copy of the checkpoint."
                )
            found[ours] = replace(found.pop(name), is_divisor=stored in _DIVISORS)
    return found


def with_experts_apart(
    infos: Mapping[str, TensorInfo], config: TargetConfig, where: str
) -> dict[str, TensorInfo]:
    """Return the tensors with FP8 experts of a layer that are one tensor as linears of each.

    transformers has them so: gate_up_proj [experts, 2·intermediate, hidden], the rows of gate
    first, down_proj [experts, hidden, intermediate], and *_scale_inv with a number for each block.

    Raises: CheckpointError: for blocks that cross from gate to up.
    """
    found = dict(infos)
    for name, scale in infos.items():
        match = _STACKED_SCALE.fullmatch(name)
        weight_name = name.removesuffix("_scale_inv")
        weight = infos.get(weight_name)
        if match is None or weight is None or config.moe is None:
            continue
        if config.moe.intermediate_size % FP8_BLOCK_SIZE:
            raise CheckpointError(
                f"{where}: {name} has scales of blocks of {FP8_BLOCK_SIZE} rows, which cross from"
                f" gate to up: the experts' intermediate_size {config.moe.intermediate_size} is no"
                " multiple of that. Use a checkpoint with tensors of each expert."
            )
        inner, hidden = config.moe.intermediate_size, config.hidden_size
        linears = {"down_proj": (hidden, inner)}
        if match[2] == "gate_up_proj":
            linears = {"gate_proj": (inner, hidden), "up_proj": (inner, hidden)}
        blocks = {name: _blocks(shape) for name, shape in linears.items()}
        parts = {
            **dict(_experts_of(weight, match[1], "weight", linears, config.moe.num_experts)),
            **dict(
                _experts_of(scale, match[1], "weight_scale", blocks, config.moe.num_experts)
            ),
        }
        if len(parts) == 2 * len(linears) * config.moe.num_experts:
            del found[name], found[weight_name]
            found |= parts
    return found


def _experts_of(
    info: TensorInfo,
    prefix: str,
    last: str,
    linears: Mapping[str, tuple[int, int]],
    num_experts: int,
) -> Iterator[tuple[str, TensorInfo]]:
    """Yield the part of each expert's linears in a tensor of all; none if its shape is another."""
    rows = sum(shape[0] for shape in linears.values())
    columns = next(iter(linears.values()))[1]
    if info.shape != (num_experts, rows, columns):
        return
    offset = info.offset
    for expert in range(num_experts):
        for linear, shape in linears.items():
            nbytes = prod(shape) * DTYPE_BITS[info.dtype] // 8
            full = f"{prefix}.{expert}.{linear}.{last}"
            yield full, TensorInfo(full, info.dtype, shape, info.path, offset, nbytes)
            offset += nbytes


def _blocks(shape: tuple[int, int]) -> tuple[int, int]:
    """Return how many blocks a weight [out, in] has along both axes."""
    rows, columns = (-(-size // FP8_BLOCK_SIZE) for size in shape)
    return rows, columns


def stored_name(name: str, layout: Layout, *, is_packed: bool) -> str:
    """Return the name that a layout stores a tensor under, for people; `name` is ModelOpt's.

    `is_packed`: it belongs to a 4-bit linear.
    """
    for stored, usual in _ENDINGS[layout].items():
        is_of_packed = stored == ".weight_packed" or stored in _DIVISORS
        if name.endswith(usual) and (is_packed or not is_of_packed):
            return name.removesuffix(usual) + stored
    return name
