"""Good hybrid targets, which the cases of hybrid_cases.py spoil."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from tests.bad_checkpoints.make_bad import (
    _COMMON,
    GOOD,
    VOCAB,
    BadCheckpoint,
    _quantized,
    pack,
    pack_bytes,
)

HIDDEN, HEADS, HEAD_DIM, FFN = 16, 2, 8, 48
KEY_DIM, VALUE_DIM, VALUE_HEADS = 4, 8, 2  # one key head
CHANNELS, VALUES = 2 * KEY_DIM + VALUE_HEADS * VALUE_DIM, VALUE_HEADS * VALUE_DIM
COUNT, SIZE, SHARED = 3, 10, 12
TEXT, NEXT = "model.language_model.", "model."
DELTA, FULL = "layers.0.linear_attn.", "layers.1.self_attn."
_CONFIG: dict[str, Any] = {
    **_COMMON,
    "hidden_size": HIDDEN,
    "intermediate_size": FFN,
    "head_dim": HEAD_DIM,
    "num_hidden_layers": 2,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 1,
    "linear_num_value_heads": VALUE_HEADS,
    "linear_key_head_dim": KEY_DIM,
    "linear_value_head_dim": VALUE_DIM,
    "linear_conv_kernel_dim": 4,
    "partial_rotary_factor": 0.25,
}
_EXPERTS = {
    "num_experts": COUNT,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": SIZE,
    "shared_expert_intermediate_size": SHARED,
}


def _mlp(name: str, size: int) -> dict[str, list[int]]:
    shapes = {f"{name}.{part}_proj.weight": [size, HIDDEN] for part in ("gate", "up")}
    return shapes | {f"{name}.down_proj.weight": [HIDDEN, size]}


def _shapes(prefix: str, projections: dict[str, int]) -> dict[str, list[int]]:
    """Return all shapes but those of the MLPs; `projections`: of the gated delta net, with rows."""
    delta, full = f"{prefix}{DELTA}", f"{prefix}{FULL}"
    shapes = {f"{delta}{name}.weight": [rows, HIDDEN] for name, rows in projections.items()}
    shapes |= {
        f"{delta}conv1d.weight": [CHANNELS, 1, 4],
        f"{delta}A_log": [VALUE_HEADS],
        f"{delta}dt_bias": [VALUE_HEADS],
        f"{delta}norm.weight": [VALUE_DIM],
        f"{delta}out_proj.weight": [HIDDEN, VALUES],
        f"{full}q_proj.weight": [2 * HEADS * HEAD_DIM, HIDDEN],
        f"{full}k_proj.weight": [HEAD_DIM, HIDDEN],
        f"{full}v_proj.weight": [HEAD_DIM, HIDDEN],
        f"{full}o_proj.weight": [HIDDEN, HEADS * HEAD_DIM],
        f"{full}q_norm.weight": [HEAD_DIM],
        f"{full}k_norm.weight": [HEAD_DIM],
        f"{prefix}embed_tokens.weight": [VOCAB, HIDDEN],
        f"{prefix}norm.weight": [HIDDEN],
        "lm_head.weight": [VOCAB, HIDDEN],
    }
    for layer in range(2):
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{prefix}layers.{layer}.{name}.weight"] = [HIDDEN]
    return shapes


QKV = {"in_proj_qkv": CHANNELS, "in_proj_z": VALUES, "in_proj_b": 2, "in_proj_a": 2}
QKVZ = {"in_proj_qkvz": CHANNELS + VALUES, "in_proj_ba": 4}


def _dense_shapes() -> dict[str, list[int]]:
    shapes = _shapes(TEXT, QKV) | {"model.visual.blocks.0.attn.qkv.weight": [12, 4]}
    for layer in range(2):
        shapes |= _mlp(f"{TEXT}layers.{layer}.mlp", FFN)
    return shapes | {"mtp.fc.weight": [HIDDEN, 2 * HIDDEN]}


def _dense_config() -> dict[str, Any]:
    return {
        "architectures": ["Qwen3_5ForConditionalGeneration"],
        "model_type": "qwen3_5",
        "text_config": _CONFIG | {"model_type": "qwen3_5_text"},
        "tie_word_embeddings": False,
    }


def good_images() -> BadCheckpoint:
    """Return a two-layer Qwen3.5 with images, nothing spoiled yet."""
    return BadCheckpoint(_dense_config(), pack(_dense_shapes()))


def good_quantized_images() -> BadCheckpoint:
    """Return the same in NVFP4, but for what published files leave as it is."""
    kept = ("conv1d", "in_proj_a", "in_proj_b", "lm_head", "embed_tokens", "visual", "mtp")
    tensors: dict[str, tuple[str, list[int], bytes]] = {}
    for name, shape in _dense_shapes().items():
        if len(shape) == 2 and not any(part in name for part in kept):
            tensors |= _quantized(name.removesuffix(".weight"), "NVFP4", *shape)
        else:
            numbers = (np.arange(np.prod(shape)) * 37 % 101 - 50) / 64
            tensors[name] = ("BF16", shape, numbers.astype(ml_dtypes.bfloat16).tobytes())
    patterns = [f"*{part}" for part in kept[1:4]]
    settings = {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": patterns}
    return BadCheckpoint(
        _dense_config() | {"quantization_config": settings}, pack_bytes(tensors)
    )


def good_next() -> BadCheckpoint:
    """Return a two-layer Qwen3-Next with linears of each expert, nothing spoiled yet."""
    shapes = _shapes(NEXT, QKVZ)
    for layer in range(2):
        mlp = f"{NEXT}layers.{layer}.mlp"
        shapes |= {f"{mlp}.gate.weight": [COUNT, HIDDEN]}
        for expert in range(COUNT):
            shapes |= _mlp(f"{mlp}.experts.{expert}", SIZE)
        shapes |= _mlp(f"{mlp}.shared_expert", SHARED)
        shapes[f"{mlp}.shared_expert_gate.weight"] = [1, HIDDEN]
    config = {"architectures": ["Qwen3NextForCausalLM"], "model_type": "qwen3_next"}
    return BadCheckpoint(_CONFIG | _EXPERTS | config, pack(shapes))


def good_stacked() -> BadCheckpoint:
    """Return a two-layer Qwen3.5-MoE with all experts in one tensor, nothing spoiled yet."""
    shapes = _shapes(NEXT, QKV)
    for layer in range(2):
        mlp = f"{NEXT}layers.{layer}.mlp"
        shapes |= {
            f"{mlp}.gate.weight": [COUNT, HIDDEN],
            f"{mlp}.experts.gate_up_proj": [COUNT, 2 * SIZE, HIDDEN],
            f"{mlp}.experts.down_proj": [COUNT, HIDDEN, SIZE],
            f"{mlp}.shared_expert_gate.weight": [1, HIDDEN],
        }
        shapes |= _mlp(f"{mlp}.shared_expert", SHARED)
    config = {"architectures": ["Qwen3_5MoeForCausalLM"], "model_type": "qwen3_5_moe_text"}
    return BadCheckpoint(_CONFIG | _EXPERTS | config, pack(shapes))


IMAGES, NVFP4 = "qwen3_5 target", "nvfp4 qwen3_5 target"
MOE, STACKED = "qwen3_next target", "stacked qwen3_5_moe target"
GOOD |= {
    IMAGES: good_images,
    NVFP4: good_quantized_images,
    MOE: good_next,
    STACKED: good_stacked,
}
