"""Qwen2ForCausalLM: Llama with biases on q, k and v; Qwen 1.5, 2 and 2.5."""

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
from trtllm_dflash.models.windows import FULL, SLIDING, read_layer_types, windows_of


def read_windows(reader: HfReader, num_layers: int) -> tuple[int, ...]:
    """Read each layer's window; by default the layers from `max_window_layers` on slide.

    Nothing slides unless `use_sliding_window` is true and `sliding_window` is given.
    """
    slides = reader.read(bool, "use_sliding_window", default=False)
    slides = slides and reader.get("sliding_window") is not None
    first = reader.read(int, "max_window_layers", low=0) if slides else num_layers
    default = tuple(SLIDING if layer >= first else FULL for layer in range(num_layers))
    layer_types = read_layer_types(reader, num_layers, "qwen2", default=default)
    if SLIDING in layer_types and not slides:
        reader.fail("layer_types", f"has {SLIDING}, but use_sliding_window gives no window.")
    return windows_of(reader, layer_types)


FAMILY = TargetFamily(
    "Qwen2ForCausalLM",
    "qwen2",
    tensors=target_table(
        *attention_specs(TARGET_LAYER, o_bias=False), *mlp_specs(TARGET_LAYER)
    ),
    layer=dense_layer,
    read_windows=read_windows,
    allowed=(),
    defaults={
        "num_key_value_heads": 32,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
    },
    attention_bias=True,
    head_dim_from_hidden=True,
    default_rope_theta=10000.0,
)
