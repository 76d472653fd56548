"""The memory that a layer's experts need in a step, their weights aside."""

from __future__ import annotations

from trtllm_dflash.builder.integer_weights import has_integer_experts
from trtllm_dflash.builder.resolve import ResolvedModels
from trtllm_dflash.checkpoint.block_integers import copies_of_rows
from trtllm_dflash.graph.kernel_specs import FP8_FORMAT, NVFP4_FORMAT
from trtllm_dflash.models.base import TargetConfig
from trtllm_dflash.models.moe import MoEConfig
from trtllm_dflash.trt_plugins.params import moe_plan


def expert_scratch(
    models: ResolvedModels, rows: int, dtype_bytes: int, *, kernels: bool
) -> int:
    """Return the bytes for a step of so many rows; 0 of a target without experts.

    `kernels`: the engine has our plugins.
    """
    target = models.target.config
    moe = target.moe
    if moe is None:
        return 0
    precision = models.resolved.weight_only_precision
    if precision is not None and has_integer_experts(models.target):
        return rows * copies_of_rows(precision) * moe.top_k * _row_of_integers(target, moe)
    if not kernels:  # the operator's body computes all experts of every row
        widest = max(3 * moe.intermediate_size, moe.intermediate_size + target.hidden_size)
        return rows * moe.num_experts * widest * dtype_bytes
    formats = models.target.expert_formats
    weight_format = FP8_FORMAT if formats else 0
    if any(fmt.group_size is not None for fmt in formats):
        weight_format = NVFP4_FORMAT  # MXFP4 takes as much
    return moe_plan(
        tokens=rows,
        hidden=target.hidden_size,
        inner_size=moe.intermediate_size,
        experts=moe.num_experts,
        top_k=moe.top_k,
        weight_format=weight_format,
    ).workspace_bytes


def _row_of_integers(target: TargetConfig, moe: MoEConfig) -> int:
    """Return the bytes of one expert's row: ONNX Runtime has four rows, and twice its choice."""
    return 4 * (4 * target.hidden_size + 2 * moe.num_experts)
