"""Quantized linears in a checkpoint: the tensors that each one must have.

| format | weight | weight_scale | weight_scale_2 | input_scale |
|---|---|---|---|---|
| FP8 | F8_E4M3 [out, in] | F32 [] | | F32 [] |
| W8A16_FP8 | F8_E4M3 [out, in] | F32 or BF16 [out, 1], or [] | | |
| FP8_BLOCK | F8_E4M3 [out, in] | F32 or BF16 [out/128, in/128], rounded up | | |
| NVFP4 | U8 [out, in/2] | F8_E4M3 [out, in/16] | F32 [] | F32 [] |
| W4A16_NVFP4 | U8 [out, in/2] | F8_E4M3 [out, in/16] | F32 [] | |

These are ModelOpt's names; quantized_layouts.py has those of others, whose single numbers may be
BF16 as well. A byte of an NVFP4 weight packs two E2M1 values along `in`, the first one in its low
half. See dequantize.py for the values, mxfp4.py for fused experts and quantization_checks.py for
errors.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from trtllm_dflash.checkpoint.dtypes import WEIGHT_DTYPES
from trtllm_dflash.checkpoint.formats import (
    FORMATS,
    W8A16_FP8,
    Layout,
    Quantization,
    WeightFormat,
)
from trtllm_dflash.checkpoint.mxfp4 import BLOCKS, MXFP4_GROUP_SIZE, SCALES
from trtllm_dflash.models.tensor_specs import TensorSpec, resolve_shapes

PACKED_DTYPES = ("F8_E4M3", "U8")  # meaningless without their scales
LINEAR_SCALES = ("weight_scale", "weight_scale_2", "input_scale")
CACHE_SCALES = {"k_proj": "k_scale", "v_proj": "v_scale"}
ALL_SCALES = (*LINEAR_SCALES, *CACHE_SCALES.values())


@dataclass(frozen=True)
class StoredSpec:
    """What a stored tensor must be: its sizes, the same in symbols, and the dtypes it may have.

    `others` are further shapes of the same numbers.
    """

    shape: tuple[int, ...]
    symbols: tuple[str, ...]
    dtypes: tuple[str, ...] = WEIGHT_DTYPES
    others: tuple[tuple[int, ...], ...] = ()

    def admits(self, shape: tuple[int, ...]) -> bool:
        """Tell whether a tensor may have this shape; a scalar may also be stored as [1]."""
        return shape in (self.shape, *self.others) or (not self.shape and shape == (1,))


def _scalar(quantization: Quantization) -> StoredSpec:
    """Return what a scale of a whole tensor must be: other makers than ModelOpt use BF16 too."""
    is_modelopt = quantization.layout is Layout.MODELOPT
    return StoredSpec((), (), ("F32",) if is_modelopt else WEIGHT_DTYPES)


def expected_tensors(
    rows: Mapping[str, TensorSpec],
    config: Any,
    formats: Mapping[str, WeightFormat],
    quantization: Quantization,
) -> dict[str, StoredSpec]:
    """Return all tensors by name: the rows, with quantized weights replaced by what is stored.

    FP8 caches have scales, which an export may leave out as a whole: see `without_unit_scales`.
    """
    expected: dict[str, StoredSpec] = {}
    shapes = resolve_shapes(rows, config)
    for name, row in rows.items():
        module, _, part = name.rpartition(".")
        plain = StoredSpec(shapes[name], row.shape)
        if row.are_experts and name in formats:
            expected |= _tensors_of_experts(name, plain)
        elif part == "weight" and module in formats:
            expected |= tensors_of_linear(module, formats[module], plain, quantization)
        else:
            expected[name] = plain
        scale = CACHE_SCALES.get(module.rpartition(".")[2])
        if quantization.kv_cache and scale and part == "weight":
            expected[f"{module}.{scale}"] = _scalar(quantization)
    return expected


def without_unit_scales(
    expected: Mapping[str, StoredSpec], infos: Collection[str]
) -> dict[str, StoredSpec]:
    """Return `expected` without scales of caches where the files have none at all: all are then 1.

    ModelOpt exports so what it quantized without calibrating caches (its recipes *-kv_fp8_cast).
    Some scales without the others are damage, and stay expected.
    """
    if any(map(is_cache_scale, infos)):
        return dict(expected)
    return {name: stored for name, stored in expected.items() if not is_cache_scale(name)}


def tensors_of_linear(
    module: str, fmt: WeightFormat, plain: StoredSpec, quantization: Quantization
) -> dict[str, StoredSpec]:
    """Return the tensors by name of a linear in a format; `plain` is its weight without one."""
    scalar = _scalar(quantization)
    if fmt.group_size is None:
        scale = scalar
        if fmt.block_size is not None:
            scale = _block_scales(plain, fmt.block_size, quantization.layout)
        elif fmt.has_row_scales:
            rows = plain.shape[0]
            symbols = (plain.symbols[0], "1")
            scale = StoredSpec((rows, 1), symbols, WEIGHT_DTYPES, ((rows,), (), (1,)))
        tensors = {
            "weight": StoredSpec(plain.shape, plain.symbols, ("F8_E4M3",)),
            "weight_scale": scale,
        }
    else:
        tensors = {
            "weight": _divided(plain, 2, "U8"),
            "weight_scale": _divided(plain, fmt.group_size, "F8_E4M3"),
            "weight_scale_2": scalar,
        }
    if fmt.has_input_scale:
        tensors["input_scale"] = scalar
    return {f"{module}.{name}": stored for name, stored in tensors.items()}


def _block_scales(plain: StoredSpec, size: int, layout: Layout) -> StoredSpec:
    """Return a scale for each block [size, size]; the last ones may be partial.

    ModelOpt keeps the axes of a block, and stores that of a single block as a scalar.
    """
    shape = tuple(-(-length // size) for length in plain.shape)
    symbols = tuple(f"ceil({symbol}/{size})" for symbol in plain.symbols)
    if layout is not Layout.MODELOPT:
        return StoredSpec(shape, symbols, WEIGHT_DTYPES)
    rows, columns = shape
    others: tuple[tuple[int, ...], ...] = ((rows, 1, columns, 1),)
    if rows * columns == 1:
        others = (*others, ())
    return StoredSpec(shape, symbols, WEIGHT_DTYPES, others)


def _divided(plain: StoredSpec, size: int, dtype: str) -> StoredSpec:
    """Return a tensor [out, in/size] of this dtype."""
    rows, columns = plain.shape
    out_symbol, in_symbol = plain.symbols
    symbols = (out_symbol, f"{in_symbol}/{size}")
    return StoredSpec((rows, columns // size), symbols, (dtype,))


def _tensors_of_experts(name: str, plain: StoredSpec) -> dict[str, StoredSpec]:
    count, columns, rows = plain.shape
    count_symbol, in_symbol, out_symbol = plain.symbols
    size = MXFP4_GROUP_SIZE
    packed = MXFP4_GROUP_SIZE // 2
    shape = (count, rows, columns // size)
    symbols = (count_symbol, out_symbol, f"{in_symbol}/{size}")
    blocks = StoredSpec((*shape, packed), (*symbols, str(packed)), ("U8",))
    return {f"{name}{BLOCKS}": blocks, f"{name}{SCALES}": StoredSpec(shape, symbols, ("U8",))}


def is_scale(name: str) -> bool:
    """Tell whether the tensor `name` holds scales."""
    return name.rpartition(".")[2] in ALL_SCALES or is_e8m0_scale(name)


def is_cache_scale(name: str) -> bool:
    """Tell whether the tensor `name` holds the scale of a layer's keys or values."""
    return name.rpartition(".")[2] in CACHE_SCALES.values()


def is_e8m0_scale(name: str) -> bool:
    """Tell whether the tensor `name` holds E8M0 scales: exponents, a byte each."""
    return name.endswith(SCALES)


@dataclass(frozen=True)
class Quantizable:
    """What of a model may be quantized: shapes of `linears` by module, of `experts` by name.

    Linears are [out, in], fused experts [number, in, out]. `expert_linears` are the linears of
    single experts, whose activations are not quantized.
    """

    linears: Mapping[str, tuple[int, ...]]
    experts: Mapping[str, tuple[int, ...]]
    expert_linears: Collection[str]

    @classmethod
    def from_rows(cls, rows: Mapping[str, TensorSpec], config: Any) -> Quantizable:
        """Return what may be quantized among a model's tensors, given by name."""
        linears = {}
        experts = {}
        expert_linears = set()
        shapes = resolve_shapes(rows, config)
        for name, row in rows.items():
            shape = shapes[name]
            module = name.removesuffix(".weight")
            if row.are_experts:
                experts[name] = shape
            if row.is_linear:
                linears[module] = shape
            if row.is_linear and row.is_per_expert:
                expert_linears.add(module)
        return cls(linears, experts, expert_linears)

    @property
    def expert_tensor_names(self) -> set[str]:
        """Return the names that fused experts' tensors may have, quantized or not."""
        return {f"{name}{ending}" for name in self.experts for ending in ("", BLOCKS, SCALES)}

    def formats(self, quantization: Quantization) -> dict[str, WeightFormat]:
        """Return the formats of what is quantized; a single expert's is of its weights alone."""
        found = {module: quantization.format_of(module) for module in self.linears}
        found |= {name: quantization.format_of_experts(name) for name in self.experts}
        return {
            module: _of_weights_alone(fmt) if module in self.expert_linears else fmt
            for module, fmt in found.items()
            if fmt is not None
        }


def _of_weights_alone(fmt: WeightFormat) -> WeightFormat:
    """Return the format of the same weights whose activations are left as they are."""
    if not fmt.has_input_scale:
        return fmt
    return FORMATS["w4a16_nvfp4"] if fmt.group_size else W8A16_FP8
