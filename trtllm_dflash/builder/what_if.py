"""What-if of a dry run: the target as if it were quantized, or its caches were FP8."""

from __future__ import annotations

from trtllm_dflash.checkpoint.formats import (
    FORMATS,
    LINEAR_FORMATS,
    Quantization,
    algos_of,
)
from trtllm_dflash.checkpoint.from_config import checkpoint_of_config
from trtllm_dflash.checkpoint.loader import Checkpoint, Config
from trtllm_dflash.checkpoint.quantization_checks import quantized_to
from trtllm_dflash.errors import UsageError
from trtllm_dflash.models.base import TargetConfig

UNQUANTIZED = "none"


def as_if_quantized(
    model: Checkpoint[Config], name: str, option: str = "--quant"
) -> Checkpoint[Config]:
    """Return the model as if its linears, and its experts, were quantized to the format `name`.

    "none" leaves it as it is stored. Its head, the drafter's `fc` and what ModelOpt leaves out are
    never quantized. `option` is for errors.

    Raises:
        UsageError: for a model that is quantized already, and for FP8 experts.
    """
    if name == UNQUANTIZED:
        return model
    stored: Quantization = model.quantization
    found = [LINEAR_FORMATS[each] for each in sorted(stored.names)]
    if found:
        raise UsageError(
            f"{option} {name}: {model.directory} is {algos_of(found)} already; leave the option"
            " out, or give its unquantized original"
        )
    has_experts = isinstance(model.config, TargetConfig) and model.config.moe is not None
    if has_experts and not stored.mxfp4 and FORMATS[name].group_size is None:
        raise UsageError(
            f"{option} {name}: {model.directory} has experts, and of experts only 4-bit formats are"
            " computed; nvfp4 and w4a16_nvfp4 are such"
        )
    asked = quantized_to(name, mxfp4=stored.mxfp4)
    return checkpoint_of_config(model.config, asked, str(model.directory))


def supposition(quant: str, *, fp8_caches: bool, has_experts: bool) -> str:
    """Return what a dry run supposes, and what would make it true."""
    parts = []
    if quant != UNQUANTIZED:
        parts.append(f"the target's linears were quantized to {FORMATS[quant].algo}")
    if fp8_caches:
        parts.append("its caches had scales for FP8")
    options = f"--quant {quant}{' --kv-cache-dtype fp8' if fp8_caches else ''}"
    maker = f"`dflash-trt quantize {options}` makes such a checkpoint"
    if has_experts:
        maker = "`dflash-trt quantize` does not take experts, so ModelOpt itself has to make it"
    return f"as if {' and '.join(parts)}; {maker}"
