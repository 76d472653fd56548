"""All use of ModelOpt: quantizers in a model, calibration, and packed tensors.

ModelOpt exports whole models. Here its steps are taken one by one, so that a model can be quantized
layer by layer. A test compares the outcome with ModelOpt's own export, bit for bit.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from itertools import product
from typing import Any

import torch

from trtllm_dflash.errors import QuantizeError
from trtllm_dflash.quantize import nvfp4_cpu

TESTED = "0.47."
_LOG = logging.getLogger(__name__)
_CONFIGS = {
    "fp8": "FP8_DEFAULT_CFG",
    "nvfp4": "NVFP4_DEFAULT_CFG",
    "w4a16_nvfp4": "W4A16_NVFP4_CFG",
}
_E4M3_MAX = 448.0
_EXPERT_LINEARS = ("gate_proj", "up_proj", "down_proj")
_PACKED_SUFFIXES = ("weight", "weight_scale", "weight_scale_2", "input_scale")
# Of the experts of a layer; each expert has its own for weights, and all have one for inputs.
_EXPERTS_QUANTIZER = re.compile(
    r"(.*\bexperts)\.(gate_up_proj|down_proj)_(?:input_quantizer|weight_quantizers\.(\d+))"
)
# Linears that read the same input, in a decoder layer.
_SHARED_INPUT = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("linear_attn.in_proj_qkv", "linear_attn.in_proj_z"),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj"),
)


def insert_quantizers(
    model: Any,
    quant: str,
    kv_cache_dtype: str | None,
    *,
    excluded: Sequence[str] = (),
    with_experts: bool = True,
) -> None:
    """Insert uncalibrated quantizers of the format `quant` into a model.

    The model's weights may be on `meta`. With a `quant` that is none of ModelOpt's, linears get no
    quantizers. `excluded` are module names, besides those that ModelOpt leaves alone by itself
    (heads, embeddings). Without `with_experts` experts stay transformers' own modules.
    """
    mtq = _import_quantization()
    version = metadata.version("nvidia-modelopt")
    if not version.startswith(TESTED):
        _LOG.warning("ModelOpt %s is installed; this was tested with %s*", version, TESTED)
    nvfp4_cpu.install()
    config: Any = {"quant_cfg": [{"quantizer_name": "*", "enable": False}]}
    if quant in _CONFIGS:
        config = copy.deepcopy(getattr(mtq, _CONFIGS[quant]))
    with silence_modelopt(), contextlib.ExitStack() as stack:
        if not with_experts:
            stack.enter_context(_without_experts(model))
        if kv_cache_dtype is not None:
            # FP8_KV_CFG alone would leave every linear on ModelOpt's default, INT8.
            kv_cache = copy.deepcopy(mtq.FP8_KV_CFG["quant_cfg"])
            config = mtq.utils.update_quant_cfg_with_kv_cache_quant(config, kv_cache)
        config["quant_cfg"] += [
            {"quantizer_name": f"{name}.*", "enable": False} for name in excluded
        ]
        config["algorithm"] = None
        mtq.quantize(model, config)


def calibrate(module: Any, forward: Callable[[], None], where: str) -> None:
    """Calibrate every quantizer in `module` with its largest magnitude.

    That is of the weights, and of the activations that `forward` sends through the module.

    Raises:
        QuantizeError: naming the part whose values allow no scale; `where` is the module's name,
            with a dot.
    """
    from modelopt.torch.quantization.model_calib import max_calibrate

    def forward_once_weights_are_done(module: Any) -> None:
        for name, quantizer in _quantizers(module):
            if "weight_quantizer" in name:
                quantizer.disable_calib()  # or it would read its weight again at every call
        forward()

    try:
        with silence_modelopt():
            max_calibrate(module, forward_once_weights_are_done)
    except AssertionError as error:  # ModelOpt's error for NaN and Inf
        raise QuantizeError(
            f"{where[:-1]}: the values in it are not finite ({error}), so they have no scale. If"
            " the model is F16, convert it to BF16: F16 ends at 65504."
        ) from error
    for name, quantizer in _quantizers(module):
        if quantizer.amax is None or not bool((quantizer.amax > 0).all()):
            part = f"{where}{_describe_quantizer(name)}"
            raise QuantizeError(
                f"{part} was zero, or not there, throughout the calibration text, so it has no"
                " scale. Give other text with --calib-file."
            )


def share_scales(layer: Any) -> None:
    """Share the input scale and the global weight scale among linears with the same input."""
    from modelopt.torch.export.quant_utils import preprocess_linear_fusion

    modules = dict(layer.named_modules())
    for names in _SHARED_INPUT:
        if all(name in modules for name in names):
            preprocess_linear_fusion([modules[name] for name in names])


def with_rounded_weights(layer: Any) -> Any:
    """Return a copy of a calibrated layer with rounded weights, which makes its forward cheap.

    Experts get unrounded inputs, as in our engines.
    """
    import modelopt.torch.quantization as mtq

    rounded = copy.deepcopy(layer)
    for experts in _experts_of(rounded).values():
        experts.gate_up_proj_input_quantizer.disable()
        experts.down_proj_input_quantizer.disable()
    with silence_modelopt():
        mtq.fold_weight(rounded)
    return rounded


def pack_weights(module: Any, prefix: str) -> dict[str, torch.Tensor]:
    """Return the packed weights and scales of a calibrated module, by their checkpoint names.

    Scales of keys and values have the names of `k_proj` and `v_proj`. Tensors that are not
    quantized are left out. The module cannot be used afterwards.
    """
    from modelopt.torch.export.moe_utils import _export_fused_experts
    from modelopt.torch.export.quant_utils import postprocess_state_dict
    from modelopt.torch.export.unified_export_hf import _export_quantized_weight

    linears = {
        name: child for name, child in module.named_modules() if _is_quantized_linear(child)
    }
    names = list(linears)
    with silence_modelopt():
        for linear in linears.values():
            _export_quantized_weight(linear, linear.weight.dtype)
        for name, experts in _experts_of(module).items():
            _export_fused_experts(experts, experts.down_proj.dtype)
            for expert, linear in product(range(experts.num_experts), _EXPERT_LINEARS):
                names.append(f"{name}.{expert}.{linear}")
        tensors = postprocess_state_dict(module.state_dict(), _E4M3_MAX, "FP8")
    wanted = {f"{name}.{suffix}" for name in names for suffix in _PACKED_SUFFIXES}
    packed = {}
    for name, tensor in tensors.items():
        if name in wanted or name.endswith((".k_scale", ".v_scale")):
            packed[prefix + name] = tensor.contiguous().cpu()
    return packed


def quant_config_json(model: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a quantized model's hf_quant_config.json, and its `quantization_config`.

    The latter goes into config.json.
    """
    from modelopt.torch.export.convert_hf_config import convert_hf_quant_config_format
    from modelopt.torch.export.quant_utils import get_quant_config

    with silence_modelopt():
        described: dict[str, Any] = get_quant_config(model)
        return described, convert_hf_quant_config_format(described)


@contextlib.contextmanager
def _without_experts(model: Any) -> Iterator[None]:
    """Take the experts out of a model; ModelOpt would copy those of gpt-oss at every call."""
    places = [module for module in model.modules() if hasattr(module, "experts")]
    taken = [place.experts for place in places]
    for place in places:
        place.experts = torch.nn.Identity()
    try:
        yield
    finally:
        for place, experts in zip(places, taken, strict=True):
            place.experts = experts


@contextlib.contextmanager
def silence_modelopt() -> Iterator[None]:
    """Log what ModelOpt prints as debug lines, and hide its warnings and progress bars."""
    from transformers.utils import logging as transformers_logging

    bars: Any = transformers_logging  # has no types
    printed = io.StringIO()
    had_bars = bars.is_progress_bar_enabled()
    with warnings.catch_warnings(), contextlib.redirect_stdout(printed):
        warnings.simplefilter("ignore")
        bars.disable_progress_bar()
        try:
            yield
        finally:
            if had_bars:
                bars.enable_progress_bar()
    for line in printed.getvalue().splitlines():
        _LOG.debug("modelopt: %s", line)


def _import_quantization() -> Any:
    """Import ModelOpt without its warning about the version of transformers.

    The warning advises to install an older one. Tests compare everything used here with ModelOpt's
    own export.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", r"transformers \S+ is not tested with current version of modelopt"
        )
        import modelopt.torch.quantization as mtq

    return mtq


def _quantizers(module: Any) -> list[tuple[str, Any]]:
    """Return the enabled quantizers by name."""
    from modelopt.torch.quantization.nn import TensorQuantizer

    return [
        (name, child)
        for name, child in module.named_modules()
        if isinstance(child, TensorQuantizer) and child.is_enabled
    ]


def _is_quantized_linear(module: Any) -> bool:
    quantizer = getattr(module, "weight_quantizer", None)
    return quantizer is not None and bool(quantizer.is_enabled)


def _experts_of(module: Any) -> dict[str, Any]:
    """Return the experts that ModelOpt quantizes one by one, each layer's as a module, by name.

    Their weights are two tensors of all experts. Each expert has a quantizer for either.
    """
    found = {}
    for name, child in module.named_modules():
        quantizers = getattr(child, "down_proj_weight_quantizers", None)
        if quantizers is not None and quantizers[0].is_enabled:
            found[name] = child
    return found


def _describe_quantizer(name: str) -> str:
    """Describe what a quantizer reads, from its name.

    For "mlp.down_proj.input_quantizer" that is the input of mlp.down_proj.
    """
    fused = _EXPERTS_QUANTIZER.fullmatch(name)
    if fused is not None:
        experts, linear, expert = fused.groups()
        return f"{experts}.{expert}.{linear}" if expert else f"{experts}.{linear}: their input"
    module, _, role = name.rpartition(".")
    descriptions = {
        "input_quantizer": f"{module}: its input",
        "weight_quantizer": f"{module}.weight",
        "k_bmm_quantizer": f"{module}: its keys",
        "v_bmm_quantizer": f"{module}: its values",
    }
    return descriptions.get(role, name)


@contextlib.contextmanager
def restored_functions() -> Iterator[None]:
    """Put back torch's functions that ModelOpt replaces during a forward pass.

    ModelOpt 0.47 leaves them replaced if the pass fails. The next pass in this process, of another
    model, would then go through the quantizers of the failed one.
    """
    functions = dict(vars(torch.nn.functional))
    try:
        yield
    finally:
        vars(torch.nn.functional).update(functions)
