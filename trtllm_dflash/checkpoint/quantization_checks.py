"""What is wrong with the tensors of quantized linears, against the quantization that is stated."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

import ml_dtypes
import numpy as np

from trtllm_dflash.checkpoint.dtypes import WEIGHT_DTYPES
from trtllm_dflash.checkpoint.formats import (
    HF_QUANT_CONFIG,
    Layout,
    Quantization,
    WeightFormat,
)
from trtllm_dflash.checkpoint.mxfp4 import expert_errors
from trtllm_dflash.checkpoint.quantized_tensors import (
    LINEAR_SCALES,
    PACKED_DTYPES,
    Quantizable,
)
from trtllm_dflash.checkpoint.safetensors import TensorInfo
from trtllm_dflash.errors import CheckpointError

# The drafter's projection of features, whose values 8 bits do not hold; every draft depends on it.
NEVER_QUANTIZED = ("fc",)

# Projections of linear attention that decide what a state forgets and takes: one number a head.
# ModelOpt leaves them as they are, and so do the checkpoints that are published.
GATES_OF_STATES = ("*.linear_attn.in_proj_a", "*.linear_attn.in_proj_b*")

_MAX_LISTED = 8
# Linears that an export may have left unquantized and not excluded; with more, another cause is
# likelier.
_MAX_NAMED = 3
_SAMPLED = 4096  # values of a weight
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
        "a compressed-tensors checkpoint, and config.json's quant_method is not compressed-tensors"
    ),
    r"\.weight_scale_inv$": (
        "fine-grained FP8 weights, and config.json's quant_method is not fp8"
    ),
    r"\.(absmax|quant_map|quant_state\.\w+)$": "a bitsandbytes checkpoint",
    r"_proj_(blocks|scales)$": "MXFP4 experts as gpt-oss has them",
    r"\.experts\.(gate_up|down)_proj$": (
        "experts in one tensor of another shape than config.json's, or beside linears of each."
        " They are linears of each, or [experts, 2 x moe_intermediate_size, hidden_size]"
        " with gate before up, and [experts, hidden_size, moe_intermediate_size]"
    ),
    r"\.experts\.\w+_weight_scale$": (
        "gpt-oss's experts as ModelOpt quantizes them, in blocks along another axis; use the"
        " published MXFP4 checkpoint, or make one of the BF16 original: `dflash-trt quantize"
        " --quant mxfp4`"
    ),
}


def quantized_to(name: str, *, mxfp4: bool = False) -> Quantization:
    """Return what a target quantized to the format `name` states: its head and gates are left out.

    `mxfp4`: its fused experts are stored so.
    """
    excluded = ("lm_head", *NEVER_QUANTIZED, *GATES_OF_STATES)
    return Quantization(default=name, excluded=excluded, mxfp4=mxfp4)


def shows_other_method(name: str) -> bool:
    """Tell whether only another method, or an unfinished export, stores a tensor of that name."""
    return any(re.search(pattern, name) for pattern in _FOREIGN)


def check_foreign_formats(infos: Collection[str], where: str) -> None:
    """Raise CheckpointError for tensors that only other methods or unfinished exports store."""
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
    """Raise one CheckpointError for all contradictions of tensors and stated quantization.

    Missing or misshapen tensors are left to the accounting.
    """
    errors = [
        f"{name} has a format, but this model has no linear of that name"
        for name in quantization.modules
        if name not in model.linears
    ]
    formats = model.formats(quantization)
    unscaled = []
    for module, shape in model.linears.items():
        fmt = formats.get(module)
        if fmt is None:
            errors += _plain_errors(infos, module, quantization)
        elif module in NEVER_QUANTIZED:
            errors.append(
                f"{module} is {fmt.algo}, and it must not be quantized: exclude it and quantize"
                " again"
            )
        elif _is_plain(infos, module):
            unscaled.append(module)
        else:
            if fmt.has_input_scale or not may_have_input_scale(module, quantization):
                errors += _input_scale_errors(infos, module, fmt)
            errors += _quantized_errors(infos, module, fmt, shape)
    errors += _unscaled_errors(infos, unscaled, formats)
    errors += expert_errors(infos, model.experts, quantization)
    if errors:
        more = f"\n  and {len(errors) - _MAX_LISTED} more" if len(errors) > _MAX_LISTED else ""
        lines = "".join(f"\n  {error}" for error in errors[:_MAX_LISTED])
        raise CheckpointError(
            f"{where}: the tensors do not match the quantization that its configuration"
            f" states:{lines}{more}\nPass the configuration that belongs to these weights, or"
            " quantize the original again."
        )


def may_have_input_scale(module: str, quantization: Quantization) -> bool:
    """Tell whether a scale of a linear's activations may be stored, whatever is computed here.

    Stated formats quantize activations of experts too, and so do formats of other makers.
    """
    stated = quantization.format_of(module)
    is_modelopt = quantization.layout is Layout.MODELOPT
    return stated is not None and (stated.has_input_scale or not is_modelopt)


def _plain_errors(
    infos: Mapping[str, TensorInfo], module: str, quantization: Quantization
) -> list[str]:
    """List signs of quantization in a linear without a format: it would load unscaled."""
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


def _input_scale_errors(
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


def _unscaled_errors(
    infos: Mapping[str, TensorInfo], modules: Sequence[str], formats: Mapping[str, WeightFormat]
) -> list[str]:
    """List linears with a format whose weights have none.

    They were left out of the quantization, or loaded and saved again.
    """
    found = [
        f"{name}.weight is {infos[f'{name}.weight'].dtype}, not {formats[name].algo}"
        for name in modules
    ]
    if len(modules) <= _MAX_NAMED:
        advice = "and has no scales: add {} to the exclusions"
        return [
            f"{error}, {advice.format(name)}"
            for name, error in zip(modules, found, strict=True)
        ]
    error = f"{found[0]}, and has no scales, nor have {len(modules) - 1} more linears"
    if _may_be_packed(infos[f"{modules[0]}.weight"]):
        return [
            f"{error}: packed weights may have been saved as plain ones, without their scales. Take"
            " the original export"
        ]
    return [
        f"{error}: the description may be left over. If these weights were never quantized, remove"
        f" quantization_config from config.json, and {HF_QUANT_CONFIG}"
    ]


def _may_be_packed(weight: TensorInfo) -> bool:
    """Tell whether the first values of a plain weight are E4M3 numbers, as trained ones are not."""
    values = weight.array().reshape(-1)[:_SAMPLED].astype(np.float32)
    with np.errstate(all="ignore"):
        rounded = values.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    return bool((rounded == values).all())


def _quantized_errors(
    infos: Mapping[str, TensorInfo], module: str, fmt: WeightFormat, shape: tuple[int, ...]
) -> list[str]:
    weight = infos.get(f"{module}.weight")
    scale = infos.get(f"{module}.weight_scale")
    errors = []
    if fmt.group_size is None:
        is_one = fmt.block_size is None and not fmt.has_row_scales
        if is_one and scale is not None and scale.shape not in ((), (1,)):
            errors.append(
                f"{module}.weight_scale has {list(scale.shape)}, expected a scalar for the whole"
                " tensor"
            )
        return errors
    return errors + _block_errors(module, fmt.group_size, shape, weight, scale)


def _block_errors(
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
    errors = []
    if weight is not None and weight.dtype == "U8" and weight.shape != (rows, columns // 2):
        errors.append(
            f"{module}.weight has {list(weight.shape)}, expected {[rows, columns // 2]}: two values"
            f" a byte, of {columns}"
        )
    if scale is not None and len(scale.shape) == 2 and scale.shape != (rows, columns // size):
        width = scale.shape[1]
        blocks = f" (blocks of {columns // width})" if width and columns % width == 0 else ""
        wanted = f"{[rows, columns // size]} (blocks of {size})"
        errors.append(
            f"{module}.weight_scale has {list(scale.shape)}{blocks}, expected {wanted}"
        )
    return errors
