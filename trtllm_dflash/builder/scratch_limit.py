"""Steps that need more scratch memory than TensorRT-RTX gives without a GPU."""

from __future__ import annotations

from trtllm_dflash.builder.memory_plan import MemoryPlan
from trtllm_dflash.log import human_bytes

# TensorRT-RTX's pool on a machine without a GPU.
_POOL_BYTES = 1 << 36
# The plan's figure is a formula: what is nearer to the limit than this is left to the compiler.
_CERTAIN = 1.15


def scratch_refusal(plan: MemoryPlan) -> str | None:
    """Return why the steps of an engine cannot be compiled here, None if they can or may."""
    sizes = plan.models.resolved
    if sizes.backend != "tensorrt_rtx" or plan.step_bytes() <= _CERTAIN * _POOL_BYTES:
        return None
    advice = "leave --no-plugins out, or lower" if not sizes.plugins else "lower"
    return (
        f"a step needs about {human_bytes(plan.step_bytes())} for its intermediate results, and"
        f" TensorRT-RTX compiles steps of up to {human_bytes(_POOL_BYTES)}; {advice}"
        " --max-batch-size, --max-seq-len or --max-num-tokens"
    )
