"""Qwen3NextForCausalLM: a hybrid target with experts, whose projections are ordered by key head."""

from __future__ import annotations

from trtllm_dflash.models.decoder import shared_moe_layer
from trtllm_dflash.models.hf_config import HfReader
from trtllm_dflash.models.hybrid import (
    hybrid_family,
    hybrid_table,
    read_experts_with_shared,
)
from trtllm_dflash.models.linear_attention import LinearAttentionConfig, read_linear_attention
from trtllm_dflash.models.moe import MoEConfig, require_experts_everywhere


def read_sizes(reader: HfReader) -> LinearAttentionConfig:
    """Read gated delta nets with two projections: in_proj_qkvz and in_proj_ba."""
    return read_linear_attention(reader, fused_projections=True)


def read_experts(reader: HfReader) -> MoEConfig:
    """Read experts in every layer; `norm_topk_prob` chooses the softmax."""
    require_experts_everywhere(reader)
    normalize = reader.read(bool, "norm_topk_prob", default=True)
    return read_experts_with_shared(reader, normalize=normalize)


FAMILY = hybrid_family(
    "Qwen3NextForCausalLM",
    "qwen3_next",
    tensors=hybrid_table(fused_projections=True, experts=True),
    layer=shared_moe_layer,
    read_experts=read_experts,
    read_linear_attention=read_sizes,
    defaults={"num_key_value_heads": 2},
)
