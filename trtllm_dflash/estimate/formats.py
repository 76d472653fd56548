"""The numeric formats of a pair: as its checkpoints are stored, or as the options ask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trtllm_dflash.catalog.gpus import GpuSpec
from trtllm_dflash.checkpoint.formats import FORMATS, Quantization, algos_of
from trtllm_dflash.checkpoint.from_config import checkpoint_of_config
from trtllm_dflash.checkpoint.loader import Checkpoint
from trtllm_dflash.checkpoint.quantization_checks import NEVER_QUANTIZED
from trtllm_dflash.errors import CheckpointError, UsageError
from trtllm_dflash.models.base import TargetConfig
from trtllm_dflash.models.drafter import DrafterConfig
from trtllm_dflash.options.estimate import EstimateConfig

TARGET, ACCEPT, DRAFTER = "target", "accept", "drafter"  # the parts of a step
HEAD = "lm_head"
UNQUANTIZED = "bf16"
_MULTIPLIED_AS = {"fp8": "fp8", "nvfp4": "fp4", "w4a16_nvfp4": "bf16"}


@dataclass(frozen=True)
class NumericFormat:
    """How weights or cached keys are stored, and the tensor cores' type that multiplies them."""

    name: str
    bits: float  # the share of group scales included
    multiplied_as: str  # "bf16", "fp8" or "fp4"

    def peak_flops(self, gpu: GpuSpec) -> float:
        """Return the peak of `gpu` in operations a second; UsageError if it lacks the type."""
        rates = {"bf16": gpu.bf16_tflops, "fp8": gpu.fp8_tflops, "fp4": gpu.fp4_tflops}
        rate = rates[self.multiplied_as]
        if rate is None:
            raise UsageError(
                f"{gpu.name} does not multiply {self.multiplied_as}, which {self.name} needs"
            )
        return rate * 1e12


NUMERIC_FORMATS = {
    "bf16": NumericFormat("bf16", 16, "bf16"),
    # gpt-oss's experts: 4 bits, and a power of two for every 32. Activations stay as they are.
    "mxfp4": NumericFormat("mxfp4", 4 + 8 / 32, "bf16"),
}
for _name, _format in FORMATS.items():
    NUMERIC_FORMATS[_name] = NumericFormat(_name, _format.weight_bits(), _MULTIPLIED_AS[_name])


@dataclass(frozen=True)
class PairFormats:
    """The formats of a pair's quantized modules; what is not in `modules` is BF16.

    A module is named with its part: "target.model.layers.0.self_attn.q_proj". All experts of a
    layer are one module.
    """

    modules: Mapping[str, str]
    kv_cache: str = UNQUANTIZED  # the target's; the drafter's cache is never quantized

    def format_of(self, part: str, module: str) -> NumericFormat:
        """Return the format in which a module of a part is stored."""
        return NUMERIC_FORMATS[self.modules.get(f"{part}.{module}", UNQUANTIZED)]


def formats_of_pair(
    config: EstimateConfig, target: Checkpoint[TargetConfig], drafter: Checkpoint[DrafterConfig]
) -> PairFormats:
    """Return the formats of a pair's parts.

    Raises:
        UsageError: for a format that the GPU has no arithmetic for, and for one that is asked of a
            quantized model. It names the option or the checkpoint.
    """
    modules = {
        **_module_formats(TARGET, target, "--quant", config.quant, config.device),
        **_module_formats(DRAFTER, drafter, "--drafter-quant", config.drafter_quant, config.device),
    }
    kv_cache, who = config.kv_cache_dtype, f"--kv-cache-dtype {config.kv_cache_dtype}"
    if kv_cache == "bfloat16":
        kv_cache = UNQUANTIZED
    elif kv_cache == "auto":
        kv_cache = target.quantization.kv_cache or UNQUANTIZED
        who = (
            f"{target.directory} has scales for {kv_cache} caches (--kv-cache-dtype bfloat16 does"
            " without)"
        )
    _check_arithmetic(kv_cache, who, config.device)
    return PairFormats(modules, kv_cache)


def _module_formats(
    part: str, model: Checkpoint[Any], option: str, asked: str, gpu: GpuSpec
) -> dict[str, str]:
    if asked != "none":
        model = quantized_headers(model, asked, option)
    found = model.formats
    # Experts are stored in 4 bits, or not quantized: no other format has a kernel.
    refused = {
        module for module, each in found.items() if "experts." in module and not each.group_size
    }
    if refused and asked == "none":
        raise CheckpointError(
            f"{model.directory}: {min(refused)} is FP8, and experts can be NVFP4 or unquantized:"
            " exclude it"
        )
    formats: dict[str, str] = {}
    for module in found.keys() - refused:
        layer, is_expert, _ = module.partition(".experts.")
        formats[f"{part}.{layer}.experts" if is_expert else f"{part}.{module}"] = found[module].name
    for name in sorted(set(formats.values())):
        who = f"{option} {name}" if name == asked else f"{model.directory}, stored in {name}"
        _check_arithmetic(name, who, gpu)
    return formats


def quantized_headers(model: Checkpoint[Any], name: str, option: str) -> Checkpoint[Any]:
    """Return the model as if it were quantized to the format `name`; `option` is for errors.

    Raises:
        UsageError: for a model that is quantized already.
    """
    stored = model.quantization
    formats = [FORMATS[each] for each in {stored.default, *stored.modules.values()} if each]
    if formats:
        raise UsageError(
            f"{option} {name}: {model.directory} is {algos_of(formats)} already; leave the option"
            " out, or give its unquantized original"
        )
    asked = Quantization(default=name, excluded=(HEAD, *NEVER_QUANTIZED), mxfp4=stored.mxfp4)
    quantized: Checkpoint[Any] = checkpoint_of_config(model.config, asked, str(model.directory))
    return quantized


def _check_arithmetic(name: str, who: str, gpu: GpuSpec) -> None:
    found = FORMATS.get(name)
    if found is not None and gpu.arch not in found.archs:
        raise UsageError(
            f"{who}: {gpu.name} ({gpu.arch}) has no arithmetic for {found.algo}. Who has it:"
            f" {found.hardware}"
        )
