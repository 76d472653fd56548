"""Quantized linears in a checkpoint: which tensors each one must have, and what is wrong with those
that it has.

| format | weight | weight_scale | weight_scale_2 | input_scale |
|---|---|---|---|---|
| FP8 | F8_E4M3 [out, in] | F32 [] | | F32 [] |
| NVFP4 | U8 [out, in/2] | F8_E4M3 [out, in/16] | F32 [] | F32 [] |
| W4A16_NVFP4 | U8 [out, in/2] | F8_E4M3 [out, in/16] | F32 [] | |

A byte of an NVFP4 weight holds two E2M1 codes along `in`, the first one in its low half. What the
tensors mean in numbers is in dequantize.py. Experts that are one tensor are in mxfp4.py.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trtllm_dflash.checkpoint.dtypes import WEIGHT_DTYPES
from trtllm_dflash.checkpoint.formats import FORMATS, HF_QUANT_CONFIG, Quantization, WeightFormat
from trtllm_dflash.checkpoint.mxfp4 import BLOCKS, MXFP4_GROUP_SIZE, SCALES, expert_errors
from trtllm_dflash.checkpoint.safetensors import TensorInfo
from trtllm_dflash.errors import CheckpointError
from trtllm_dflash.models.tensor_specs import TensorSpec, resolve_shape

PACKED_DTYPES = ("F8_E4M3", "U8")  # dtypes that are nothing without their scales
LINEAR_SCALES = ("weight_scale", "weight_scale_2", "input_scale")
CACHE_SCALES = {"k_proj": "k_scale", "v_proj": "v_scale"}
ALL_SCALES = (*LINEAR_SCALES, *CACHE_SCALES.values())
# The drafter's projection of features: they reach values that 8 bits lose, and every draft depends
# on them.
NEVER_QUANTIZED = ("fc",)

_LISTED = 8
# linears that an export may have left unquantized and forgotten to exclude; more are another fault
_FEW = 3
# Endings of tensors that only other methods or other tools store -> what they show.
_FOREIGN: Mapping[str, str] = {
    r"_quantizer\.": (
        "ModelOpt's calibration state, from save_pretrained; its scales are not those of the"
        " weights. Export the model with modelopt's export_hf_checkpoint, or use `dflash-trt"
        " quantize`"
    ),
    r"\.(qweight|qzeros|g_idx)$": "a GPTQ or AWQ checkpoint, whose integer weights cannot be built",
    r"\.pre_quant_scale$": (
        "an AWQ checkpoint: its weights are meant for inputs that are rescaled per channel"
    ),
    r"svdquant_lora_[ab]$": "an SVDQuant checkpoint, which adds a low-rank matrix to every linear",
    r"\.(weight_packed|weight_global_scale|input_global_scale)$": (
        "a compressed-tensors checkpoint, whose global scales are the inverse of ModelOpt's"
    ),
    r"\.weight_scale_inv$": "FP8 weights with a scale for each block of 128 x 128",
    r"\.(absmax|quant_map|quant_state\.\w+)$": "a bitsandbytes checkpoint",
    r"_proj_(blocks|scales)$": "MXFP4 experts as gpt-oss has them",
    r"\.experts\.(gate_up|down)_proj$": (
        "experts in one tensor, which only gpt-oss has; Qwen3-MoE's are published as "
        "linears of each, and save_pretrained of transformers 5 writes them so"
    ),
    r"\.experts\.\w+_weight_scale$": (
        "gpt-oss's experts as ModelOpt quantizes them, in blocks along another axis; use "
        "the published MXFP4 checkpoint, whose numbers are kept as they are"
    ),
}


@dataclass(frozen=True)
class StoredSpec:
    """What a tensor of a checkpoint must be: sizes, the same in symbols, and the dtypes it may
    have.
    """

    shape: tuple[int, ...]
    symbols: tuple[str, ...]
    dtypes: tuple[str, ...] = WEIGHT_DTYPES

    def admits(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor of this shape will do; one number may also be stored as [1]."""
        return shape == self.shape or (not self.shape and shape == (1,))


_SCALAR = StoredSpec((), (), ("F32",))


def expected_tensors(
    rows: Mapping[str, TensorSpec],
    config: Any,
    formats: Mapping[str, WeightFormat],
    quantization: Quantization,
) -> dict[str, StoredSpec]:
    """All tensors by name: the rows as they are, and in place of a quantized linear's weight what
    its format stores.

    With FP8 caches these have their scales, which an export may leave out as a whole: see
    `without_unit_scales`.
    """
    expected: dict[str, StoredSpec] = {}
    for name, row in rows.items():
        module, _, kind = name.rpartition(".")
        plain = StoredSpec(tuple(resolve_shape(row, config)), row.shape)
        row_format = formats.get(module) if kind == "weight" else None
        if row.are_experts and name in formats:
            expected |= _tensors_of_experts(name, plain)
        else:
            expected |= (
                {name: plain} if row_format is None else _tensors_of(module, row_format, plain)
            )
        scale = CACHE_SCALES.get(module.rpartition(".")[2])
        if quantization.kv_cache and scale and kind == "weight":
            expected[f"{module}.{scale}"] = _SCALAR
    return expected


def without_unit_scales(
    expected: Mapping[str, StoredSpec], infos: Collection[str]
) -> dict[str, StoredSpec]:
    """`expected`, less the scales of caches where the files have none at all: every one of them is
    then 1.

    ModelOpt exports so what it quantized without calibrating caches (its recipes *-kv_fp8_cast).
    Some scales without the others are damage, and stay expected.
    """
    if any(map(is_cache_scale, infos)):
        return dict(expected)
    return {name: stored for name, stored in expected.items() if not is_cache_scale(name)}


def _tensors_of(module: str, fmt: WeightFormat, plain: StoredSpec) -> dict[str, StoredSpec]:
    rows, columns = plain.shape
    out_symbol, in_symbol = plain.symbols
    if fmt.group_size is None:
        tensors = {
            "weight": StoredSpec(plain.shape, plain.symbols, ("F8_E4M3",)),
            "weight_scale": _SCALAR,
        }
    else:
        size = fmt.group_size
        tensors = {
            "weight": StoredSpec((rows, columns // 2), (out_symbol, f"{in_symbol}/2"), ("U8",)),
            "weight_scale": StoredSpec(
                (rows, columns // size), (out_symbol, f"{in_symbol}/{size}"), ("F8_E4M3",)
            ),
            "weight_scale_2": _SCALAR,
        }
    if fmt.has_input_scale:
        tensors["input_scale"] = _SCALAR
    return {f"{module}.{name}": stored for name, stored in tensors.items()}


def _tensors_of_experts(name: str, plain: StoredSpec) -> dict[str, StoredSpec]:
    count, columns, rows = plain.shape
    count_symbol, in_symbol, out_symbol = plain.symbols
    shape, symbols = (
        (count, rows, columns // MXFP4_GROUP_SIZE),
        (count_symbol, out_symbol, f"{in_symbol}/{MXFP4_GROUP_SIZE}"),
    )
    blocks = StoredSpec(
        (*shape, MXFP4_GROUP_SIZE // 2), (*symbols, str(MXFP4_GROUP_SIZE // 2)), ("U8",)
    )
    return {f"{name}{BLOCKS}": blocks, f"{name}{SCALES}": StoredSpec(shape, symbols, ("U8",))}


def is_scale(name: str) -> bool:
    """Whether the tensor `name` holds scales."""
    return name.rpartition(".")[2] in ALL_SCALES or is_e8m0_scale(name)


def is_cache_scale(name: str) -> bool:
    """Whether the tensor `name` holds the scale of a layer's keys or values."""
    return name.rpartition(".")[2] in CACHE_SCALES.values()


def is_e8m0_scale(name: str) -> bool:
    """Whether the tensor `name` holds exponents: E8M0 scales, a byte each."""
    return name.endswith(SCALES)


@dataclass(frozen=True)
class Quantizable:
    """What of a model may be quantized: `linears` [out, in] by module, and `experts` [number, in,
    out] by name.

    `expert_linears`: those of the linears that are one expert's. They multiply activations as they are.
    """

    linears: Mapping[str, tuple[int, ...]]
    experts: Mapping[str, tuple[int, ...]]
    expert_linears: Collection[str]

    @classmethod
    def from_rows(cls, rows: Mapping[str, TensorSpec], config: Any) -> Quantizable:
        """Those among the rows (by tensor name) of a model."""
        linears = {name.removesuffix(".weight"): row for name, row in rows.items() if row.is_linear}
        return cls(
            {module: tuple(resolve_shape(row, config)) for module, row in linears.items()},
            {
                name: tuple(resolve_shape(row, config))
                for name, row in rows.items()
                if row.are_experts
            },
            {module for module, row in linears.items() if row.is_per_expert},
        )

    @property
    def expert_tensor_names(self) -> set[str]:
        """The names of the experts' tensors, whichever way they are stored."""
        return {f"{name}{ending}" for name in self.experts for ending in ("", BLOCKS, SCALES)}

    def formats(self, quantization: Quantization) -> dict[str, WeightFormat]:
        """The quantized ones with their formats, an expert's linears with that of their weights
        alone.
        """
        found = {module: quantization.format_of(module) for module in self.linears}
        found |= {name: quantization.format_of_experts(name) for name in self.experts}
        weights_only = FORMATS["w4a16_nvfp4"]
        return {
            module: weights_only if module in self.expert_linears and fmt.group_size else fmt
            for module, fmt in found.items()
            if fmt is not None
        }


def check_foreign_formats(infos: Collection[str], where: str) -> None:
    """Raise CheckpointError, by name, for tensors that only other methods or unfinished exports
    store.
    """
    for pattern, meaning in _FOREIGN.items():
        hits = [name for name in infos if re.search(pattern, name)]
        if hits:
            raise CheckpointError(
                f"{where}: {min(hits)} ({len(hits)} such tensors) shows {meaning}."
            )


def check_quantization(
    infos: Mapping[str, TensorInfo],
    model: Quantizable,
    quantization: Quantization,
    where: str,
) -> None:
    """Raise one CheckpointError for all contradictions between the tensors and the quantization
    that is stated.

    What is simply missing or misshapen is left to the accounting.
    """
    faults = [
        f"{name} has a format, but this model has no linear of that name"
        for name in quantization.modules
        if name not in model.linears
    ]
    formats = model.formats(quantization)
    unscaled = []
    for module, shape in model.linears.items():
        fmt = formats.get(module)
        if fmt is None:
            faults += _faults_of_plain(infos, module, quantization)
        elif module in NEVER_QUANTIZED:
            faults.append(
                f"{module} is {fmt.algo}, and it must not be quantized: exclude it and quantize"
                " again"
            )
        elif module in model.expert_linears and fmt.group_size is None:
            faults.append(
                f"{module} is {fmt.algo}, and experts can be NVFP4 or unquantized: exclude it"
            )
        elif _is_plain(infos, module):
            unscaled.append(module)
        else:
            # NVFP4 as stated quantizes activations as well, which for experts nobody does here.
            if fmt is quantization.format_of(module):
                faults += _faults_of_input_scale(infos, module, fmt)
            faults += _faults_of_quantized(infos, module, fmt, shape)
    faults += _faults_of_unscaled(infos, unscaled, formats)
    faults += expert_errors(infos, model.experts, quantization)
    if faults:
        more = f"\n  and {len(faults) - _LISTED} more" if len(faults) > _LISTED else ""
        lines = "".join(f"\n  {fault}" for fault in faults[:_LISTED])
        raise CheckpointError(
            f"{where}: the tensors do not match the quantization that its configuration"
            f" states:{lines}{more}\nPass the configuration that belongs to these weights, or"
            " quantize the original again."
        )


def _faults_of_plain(
    infos: Mapping[str, TensorInfo], module: str, quantization: Quantization
) -> list[str]:
    """A linear without a format must not look as if it had one: its codes would load unscaled."""
    weight = infos.get(f"{module}.weight")
    if weight is not None and weight.dtype in PACKED_DTYPES:
        evidence = f"{module}.weight is {weight.dtype} and would load unscaled"
    else:
        scale = next((name for name in LINEAR_SCALES if f"{module}.{name}" in infos), None)
        if scale is None:
            return []
        evidence = f"{module}.{scale} is there"
    return [f"{evidence}, but {_why_plain(module, quantization)}"]


def _why_plain(module: str, quantization: Quantization) -> str:
    if not quantization.is_quantized:
        return (
            f"neither {HF_QUANT_CONFIG} nor config.json's quantization_config says that weights are"
            " quantized"
        )
    pattern = quantization.excluded_by(module)
    return (
        f"{module} is excluded by {pattern!r}"
        if pattern
        else f"{module} has no format in quantized_layers"
    )


def _faults_of_input_scale(
    infos: Mapping[str, TensorInfo], module: str, fmt: WeightFormat
) -> list[str]:
    has_input_scale = f"{module}.input_scale" in infos
    if fmt.has_input_scale and not has_input_scale:
        return [
            f"{module}.input_scale is missing: {fmt.algo} quantizes activations too, and was not"
            " calibrated"
        ]
    if not fmt.has_input_scale and has_input_scale:
        return [f"{module}.input_scale is there, but {fmt.algo} leaves activations as they are"]
    return []


def _is_plain(infos: Mapping[str, TensorInfo], module: str) -> bool:
    weight = infos.get(f"{module}.weight")
    return (
        weight is not None
        and weight.dtype in WEIGHT_DTYPES
        and f"{module}.weight_scale" not in infos
    )


def _faults_of_unscaled(
    infos: Mapping[str, TensorInfo], modules: Sequence[str], formats: Mapping[str, WeightFormat]
) -> list[str]:
    """Linears with a format, and with a weight that has none: left out of the quantization, or read
    back and saved.
    """
    found = [
        f"{name}.weight is {infos[f'{name}.weight'].dtype}, not {formats[name].algo}"
        for name in modules
    ]
    if len(modules) <= _FEW:
        advice = "and has no scales: add {} to the exclusions"
        return [
            f"{fault}, {advice.format(name)}" for name, fault in zip(modules, found, strict=True)
        ]
    return [
        f"{found[0]}, and has no scales, and so it is with {len(modules) - 1} more linears: these"
        " may be codes that were saved as numbers and lost their scales. Take the original export"
    ]


def _faults_of_quantized(
    infos: Mapping[str, TensorInfo], module: str, fmt: WeightFormat, shape: tuple[int, ...]
) -> list[str]:
    weight, scale = infos.get(f"{module}.weight"), infos.get(f"{module}.weight_scale")
    faults = []
    if fmt.group_size is None:
        if scale is not None and scale.shape not in ((), (1,)):
            faults.append(
                f"{module}.weight_scale has {list(scale.shape)}, expected one number for the whole"
                " tensor"
            )
        return faults
    return faults + _block_faults(module, fmt.group_size, shape, weight, scale)


def _block_faults(
    module: str,
    size: int,
    shape: tuple[int, ...],
    weight: TensorInfo | None,
    scale: TensorInfo | None,
) -> list[str]:
    rows, columns = shape
    if columns % size:
        return [
            f"{module} has {columns} input features, no multiple of the block of {size} that shares"
            " a scale"
        ]
    faults = []
    if weight is not None and weight.dtype == "U8" and weight.shape != (rows, columns // 2):
        faults.append(
            f"{module}.weight has {list(weight.shape)}, expected {[rows, columns // 2]}: two codes"
            f" a byte, of {columns}"
        )
    if scale is not None and len(scale.shape) == 2 and scale.shape != (rows, columns // size):
        width = scale.shape[1]
        blocks = f" (blocks of {columns // width})" if width and columns % width == 0 else ""
        wanted = f"{[rows, columns // size]} (blocks of {size})"
        faults.append(f"{module}.weight_scale has {list(scale.shape)}{blocks}, expected {wanted}")
    return faults
