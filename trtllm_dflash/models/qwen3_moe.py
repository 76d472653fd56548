"""Qwen3MoeForCausalLM: Qwen3's attention, and in every layer experts that are linears each."""

from __future__ import annotations

from trtllm_dflash.models.base import TargetFamily
from trtllm_dflash.models.decoder import (
    TARGET_LAYER,
    attention_specs,
    expert_specs,
    moe_layer,
    target_table,
)
from trtllm_dflash.models.hf_config import HfReader
from trtllm_dflash.models.moe import (
    MoEConfig,
    read_swiglu_experts,
    require_experts_everywhere,
)


def read_experts(reader: HfReader) -> MoEConfig:
    """Read plain SwiGLU experts in every layer; `norm_topk_prob` chooses the softmax."""
    require_experts_everywhere(reader)
    if reader.read(int, "shared_expert_intermediate_size", default=0):
        reader.fail(
            "shared_expert_intermediate_size",
            "is not 0, and an expert that every token uses is not built.",
        )
    return read_swiglu_experts(reader, normalize=reader.read(bool, "norm_topk_prob"))


FAMILY = TargetFamily(
    "Qwen3MoeForCausalLM",
    "qwen3_moe",
    tensors=target_table(
        *attention_specs(TARGET_LAYER, qk_norm=True), *expert_specs(TARGET_LAYER)
    ),
    layer=moe_layer,
    read_experts=read_experts,
    qk_norm=True,
)
