"""Qwen3_5ForConditionalGeneration's text, and Qwen3_5ForCausalLM: a hybrid target with MLPs.

Qwen3.5, 3.6 and 3.8 are of it.
"""

from __future__ import annotations

from trtllm_dflash.models.decoder import dense_layer
from trtllm_dflash.models.hf_config import HfReader
from trtllm_dflash.models.hybrid import hybrid_families, hybrid_table
from trtllm_dflash.models.linear_attention import LinearAttentionConfig, read_linear_attention


def read_sizes(reader: HfReader) -> LinearAttentionConfig:
    """Read gated delta nets with four projections: in_proj_qkv, _z, _b and _a."""
    return read_linear_attention(reader, fused_projections=False)


FAMILIES = hybrid_families(
    "Qwen3_5",
    "qwen3_5",
    tensors=hybrid_table(fused_projections=False, experts=False),
    layer=dense_layer,
    read_linear_attention=read_sizes,
    defaults={"num_key_value_heads": 4},
)
