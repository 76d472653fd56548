"""LlamaForCausalLM: Llama 2 and 3.x, SmolLM2."""

from __future__ import annotations

from trtllm_dflash.models.base import TargetFamily
from trtllm_dflash.models.decoder import (
    TARGET_LAYER,
    attention_specs,
    dense_layer,
    mlp_specs,
    target_table,
)

FAMILY = TargetFamily(
    "LlamaForCausalLM",
    "llama",
    tensors=target_table(
        *attention_specs(TARGET_LAYER), *mlp_specs(TARGET_LAYER, bias_when="mlp_bias")
    ),
    layer=dense_layer,
    reads_mlp_bias=True,
    # Configs older than a key rely on LlamaConfig's default for it.
    defaults={"bos_token_id": 1, "eos_token_id": 2},
    head_dim_from_hidden=True,
    default_rope_theta=10000.0,
)
