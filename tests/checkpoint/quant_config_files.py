"""Quantization configurations as both test files read them."""

from __future__ import annotations

from typing import Any

from trtllm_dflash.checkpoint.formats import Quantization
from trtllm_dflash.checkpoint.quant_config import read_quantization

WHERE = "target x"
EXCLUDE = ("lm_head", "model.embed_tokens")
MIXED = {
    "model.layers.0.self_attn.q_proj": "fp8",
    "model.layers.0.mlp.up_proj": "nvfp4",
    "model.layers.1.mlp.up_proj": "w4a16_nvfp4",
}


def read(original: dict[str, Any] | None, flat: dict[str, Any] | None) -> Quantization:
    """Read the contents of hf_quant_config.json and of config.json's section."""
    return read_quantization(
        {} if flat is None else {"quantization_config": flat}, original, WHERE
    )
