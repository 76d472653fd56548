"""Qwen3ForCausalLM (dense): Llama with a norm on every query and key head."""

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
    "Qwen3ForCausalLM",
    "qwen3",
    tensors=target_table(
        *attention_specs(TARGET_LAYER, qk_norm=True), *mlp_specs(TARGET_LAYER)
    ),
    layer=dense_layer,
    qk_norm=True,
)
