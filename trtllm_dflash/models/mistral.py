"""MistralForCausalLM: Llama; a `sliding_window` is every layer's window."""

from __future__ import annotations

from trtllm_dflash.models.base import TargetFamily
from trtllm_dflash.models.decoder import (
    TARGET_LAYER,
    attention_specs,
    dense_layer,
    mlp_specs,
    target_table,
)
from trtllm_dflash.models.hf_config import HfReader
from trtllm_dflash.models.windows import FULL, SLIDING, read_layer_types


def read_windows(reader: HfReader, num_layers: int) -> tuple[int, ...]:
    """Read `sliding_window` for all layers; null is full attention.

    Hugging Face ignores `layer_types`, so it is refused where it says anything else.
    """
    window = reader.read(int, "sliding_window", default=0, low=1)
    every = SLIDING if window else FULL
    read_layer_types(
        reader, num_layers, "mistral", allowed=(every,), default=(every,) * num_layers
    )
    return (window,) * num_layers


FAMILY = TargetFamily(
    "MistralForCausalLM",
    "mistral",
    tensors=target_table(*attention_specs(TARGET_LAYER), *mlp_specs(TARGET_LAYER)),
    layer=dense_layer,
    read_windows=read_windows,
    allowed=(),
    defaults={
        "num_key_value_heads": 8,
        "sliding_window": 4096,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    attention_bias=False,
    head_dim_from_hidden=True,
    default_rope_theta=10000.0,
)
