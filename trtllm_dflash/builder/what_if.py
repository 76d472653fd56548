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

UNQUANTIZED = "none"


def as_if_quantized(
    model: Checkpoint[Config], name: str, option: str = "--quant"
) -> Checkpoint[Config]:
    """Return the model as if its linears, and its experts, were quantized to the format `name`.

    "none" leaves it as it is stored. Its head, the drafter's `fc` and what ModelOpt leaves out are
    never quantized. `option` is for errors.

    Raises:
        UsageError: for a model that is quantized already.
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
    asked = quantized_to(name, mxfp4=stored.mxfp4)
    return checkpoint_of_config(model.config, asked, str(model.directory))


def supposition(quant: str, *, fp8_caches: bool, fused_experts: bool) -> str:
    """Return what a dry run supposes, and what would make it true.

    `fused_experts`: of gpt-oss, whose other linears nothing quantizes.
    """
    parts = []
    if quant != UNQUANTIZED:
        parts.append(f"the target's linears were quantized to {FORMATS[quant].algo}")
    if fp8_caches:
        parts.append("its caches had scales for FP8")
    options = f"--quant {quant}{' --kv-cache-dtype fp8' if fp8_caches else ''}"
    maker = f"`dflash-trt quantize {options}` makes such a checkpoint"
    if fused_experts:
        maker = "no command makes such a checkpoint: of gpt-oss only experts are quantized"
    return f"as if {' and '.join(parts)}; {maker}"
