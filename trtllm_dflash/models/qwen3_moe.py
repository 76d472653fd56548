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
from trtllm_dflash.models.hf_config import MAX_SIZE, HfReader
from trtllm_dflash.models.moe import (
    MoEConfig,
    read_expert_counts,
    require_experts_everywhere,
)


def read_experts(reader: HfReader) -> MoEConfig:
    """Read plain SwiGLU experts in every layer; `norm_topk_prob` chooses the softmax."""
    num_experts, top_k = read_expert_counts(reader, "num_experts", "num_local_experts")
    require_experts_everywhere(reader)
    if reader.read(int, "shared_expert_intermediate_size", default=0):
        reader.fail(
            "shared_expert_intermediate_size",
            "is not 0, and an expert that every token uses is not built.",
        )
    return MoEConfig(
        num_experts=num_experts,
        top_k=top_k,
        intermediate_size=reader.read(int, "moe_intermediate_size", low=1, high=MAX_SIZE),
        normalize=reader.read(bool, "norm_topk_prob"),
        fused=False,
    )


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
