"""The numeric formats of a pair: as its checkpoints are stored, or as the options ask.

A format is None where nothing is quantized: BF16.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from trtllm_dflash.checkpoint.formats import FORMATS, LINEAR_FORMATS, algos_of
from trtllm_dflash.checkpoint.from_config import checkpoint_of_config
from trtllm_dflash.checkpoint.loader import Checkpoint
from trtllm_dflash.checkpoint.quantization_checks import NEVER_QUANTIZED, quantized_to
from trtllm_dflash.errors import UsageError
from trtllm_dflash.estimate.pair import ModelPair
from trtllm_dflash.models.base import TargetConfig
from trtllm_dflash.models.drafter import DrafterConfig
from trtllm_dflash.options.estimate import EstimateConfig


def pair_as_asked(
    config: EstimateConfig, target: Checkpoint[TargetConfig], drafter: Checkpoint[DrafterConfig]
) -> ModelPair:
    """Return the pair in the formats of its checkpoints or of the options.

    Raises:
        UsageError: for a format that the GPU has no arithmetic for, and for one that is asked of a
            quantized model. It names the option or the checkpoint.
    """
    kv_cache, who = config.kv_cache_dtype, f"--kv-cache-dtype {config.kv_cache_dtype}"
    if kv_cache == "auto":
        kv_cache = target.quantization.kv_cache or ""
        who = (
            f"{target.directory} has scales for {kv_cache} caches (--kv-cache-dtype bfloat16 does"
            " without)"
        )
    asked = {"--quant": config.quant, "--drafter-quant": config.drafter_quant}
    models: list[Checkpoint[Any]] = [target, drafter]
    wanted = {}
    for index, (option, name) in enumerate(asked.items()):
        models[index] = as_asked(models[index], option, name)
        for fmt in models[index].formats.values():
            owner = option if fmt.name == name else f"{models[index].directory}, stored in"
            wanted[f"{owner} {fmt.name}"] = fmt
    cache_format = FORMATS.get(kv_cache)
    if cache_format is not None:
        wanted[who] = cache_format
    for who, fmt in wanted.items():
        if config.device.arch not in fmt.archs:
            raise UsageError(
                f"{who}: {config.device.name} ({config.device.arch}) has no arithmetic for"
                f" {fmt.algo}. Who has it: {fmt.hardware}"
            )
    return ModelPair(models[0], models[1], cache_format)


def as_asked(model: Checkpoint[Any], option: str, name: str) -> Checkpoint[Any]:
    """Return the model with its formats by module, all experts of a layer as one module.

    `name`: the format to quantize to, "none" for what is stored; `option` is for errors.

    Raises:
        UsageError: for a format that is asked of a quantized model.
    """
    stored = model.quantization
    if name != "none":
        found = [LINEAR_FORMATS[each] for each in sorted(stored.names)]
        if found:
            raise UsageError(
                f"{option} {name}: {model.directory} is {algos_of(found)} already; leave the option"
                " out, or give its unquantized original"
            )
        asked = quantized_to(name, mxfp4=stored.mxfp4)
        model = checkpoint_of_config(model.config, asked, str(model.directory))
    formats = {}
    for module, fmt in model.formats.items():
        layer, is_expert, _ = module.partition(".experts.")
        if module not in NEVER_QUANTIZED:
            formats[f"{layer}.experts" if is_expert else module] = fmt
    return replace(model, formats=formats)
