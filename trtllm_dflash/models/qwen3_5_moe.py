"""Qwen3_5MoeForConditionalGeneration's text, and Qwen3_5MoeForCausalLM: Qwen3.5 with experts."""

from __future__ import annotations

from trtllm_dflash.models.decoder import shared_moe_layer
from trtllm_dflash.models.hf_config import Allowed, HfReader
from trtllm_dflash.models.hybrid import (
    ALLOWED,
    hybrid_families,
    hybrid_table,
    read_experts_with_shared,
)
from trtllm_dflash.models.moe import MoEConfig, require_experts_everywhere
from trtllm_dflash.models.qwen3_5 import read_sizes

_NORMALIZED = Allowed(
    "norm_topk_prob", (True,), "the shares of Qwen3.5's experts are of the chosen ones."
)


def read_experts(reader: HfReader) -> MoEConfig:
    """Read experts in every layer; the softmax is over the chosen ones."""
    require_experts_everywhere(reader)
    return read_experts_with_shared(reader, normalize=True)


FAMILIES = hybrid_families(
    "Qwen3_5Moe",
    "qwen3_5_moe",
    tensors=hybrid_table(fused_projections=False, experts=True),
    layer=shared_moe_layer,
    read_experts=read_experts,
    read_linear_attention=read_sizes,
    allowed=(*ALLOWED, _NORMALIZED),
    defaults={"num_key_value_heads": 2},
)
