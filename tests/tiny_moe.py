"""Tiny random targets with experts, in the published layouts: gpt-oss (MXFP4, or unquantized) and Qwen3-MoE.

As in tests/tiny.py sizes are pairwise different; those that MXFP4 divides into blocks are multiples of 32.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.quantized import write_tensors
from tests.tiny import VOCAB, common_config, decoder_layer, matrix, norm, rope_config

GPT_OSS = {"hidden": 64, "layers": 4, "q_heads": 6, "kv_heads": 3, "head_dim": 20, "experts": 5, "expert_size": 96}
QWEN3_MOE = {"hidden": 48, "layers": 3, "q_heads": 4, "kv_heads": 2, "head_dim": 16, "experts": 7, "expert_size": 40}
TOP_K = 2
WINDOW = 7
# Below 7, so that random weights reach it.
SWIGLU_LIMIT = 1.5
MXFP4_BLOCK = 32

_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def tiny_gpt_oss(
    directory: Path,
    *,
    mxfp4: bool = True,
    seed: int = 0,
    dtype: str = "F32",
    sizes: Mapping[str, int] | None = None,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Write a random gpt-oss; both kinds of experts are the same numbers. `sizes` overrides GPT_OSS, `config` keys."""
    sizes = {**GPT_OSS, **(sizes or {})}
    random = np.random.default_rng([seed, 4])
    tensors = _around_layers(random, sizes)
    experts: dict[str, tuple[str, np.ndarray]] = {}
    for index in range(sizes["layers"]):
        prefix = f"model.layers.{index}."
        tensors |= decoder_layer(random, prefix, sizes, qk_norm=False, biases=(True, False))
        tensors[f"{prefix}self_attn.sinks"] = random.standard_normal(sizes["q_heads"])
        tensors[f"{prefix}mlp.router.weight"] = matrix(random, sizes["experts"], sizes["hidden"])
        tensors[f"{prefix}mlp.router.bias"] = 0.3 * random.standard_normal(sizes["experts"])
        shapes = {
            "gate_up_proj": (2 * sizes["expert_size"], sizes["hidden"]),
            "down_proj": (sizes["hidden"], sizes["expert_size"]),
        }
        for name, (rows, columns) in shapes.items():
            full = f"{prefix}mlp.experts.{name}"
            tensors[f"{full}_bias"] = 0.3 * random.standard_normal((sizes["experts"], rows))
            stored = random_mxfp4(random, (sizes["experts"], rows, columns))
            if mxfp4:
                experts |= {f"{full}_{kind}": ("U8", array) for kind, array in stored.items()}
            else:
                experts[full] = (dtype, mxfp4_numbers(stored).transpose(0, 2, 1))
    settings = common_config(sizes, VOCAB, dtype, attention_bias=True)
    settings |= rope_config("yarn", "old", theta=150000.0)
    settings |= {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "intermediate_size": sizes["expert_size"],
        "num_local_experts": sizes["experts"],
        "num_experts_per_tok": TOP_K,
        "experts_per_token": TOP_K,
        "swiglu_limit": SWIGLU_LIMIT,
        "sliding_window": WINDOW,
        "layer_types": [("full_attention", "sliding_attention")[index % 2 == 0] for index in range(sizes["layers"])],
    }
    if mxfp4:
        kept = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
        settings["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": kept}
    return _write(directory, settings | dict(config or {}), {k: (dtype, t) for k, t in tensors.items()} | experts)


def tiny_qwen3_moe(
    directory: Path,
    *,
    seed: int = 0,
    dtype: str = "F32",
    normalize: bool = True,
    sizes: Mapping[str, int] | None = None,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Write a random Qwen3-MoE; `sizes` overrides QWEN3_MOE, `config` keys of config.json."""
    sizes = {**QWEN3_MOE, **(sizes or {})}
    random = np.random.default_rng([seed, 5])
    tensors = _around_layers(random, sizes)
    for index in range(sizes["layers"]):
        prefix = f"model.layers.{index}."
        tensors |= decoder_layer(random, prefix, sizes, qk_norm=True, biases=(False, False))
        tensors[f"{prefix}mlp.gate.weight"] = matrix(random, sizes["experts"], sizes["hidden"])
        for expert in range(sizes["experts"]):
            name = f"{prefix}mlp.experts.{expert}."
            for part in ("gate_proj", "up_proj"):
                tensors[f"{name}{part}.weight"] = matrix(random, sizes["expert_size"], sizes["hidden"])
            tensors[f"{name}down_proj.weight"] = matrix(random, sizes["hidden"], sizes["expert_size"])
    settings = common_config(sizes, VOCAB, dtype, attention_bias=False)
    settings |= rope_config("default", "old", theta=1e7)
    settings |= {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "intermediate_size": 88,  # of layers without experts, of which there is none
        "moe_intermediate_size": sizes["expert_size"],
        "num_experts": sizes["experts"],
        "num_experts_per_tok": TOP_K,
        "norm_topk_prob": normalize,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }
    return _write(directory, settings | dict(config or {}), {name: (dtype, array) for name, array in tensors.items()})


def random_mxfp4(random: np.random.Generator, shape: tuple[int, int, int], spread: int = 2) -> dict[str, np.ndarray]:
    """The blocks and scales of random numbers [experts, out, in] near 0.1: every code, `spread`+1 exponents."""
    blocks_of = (*shape[:2], shape[2] // MXFP4_BLOCK)
    return {
        "blocks": random.integers(0, 256, (*blocks_of, MXFP4_BLOCK // 2), dtype=np.uint8),
        "scales": random.integers(123 - spread, 124, blocks_of).astype(np.uint8),
    }


def mxfp4_numbers(stored: Mapping[str, np.ndarray]) -> np.ndarray:
    """What blocks and scales mean, float64 [experts, out, in]."""
    codes = np.stack([stored["blocks"] & 15, stored["blocks"] >> 4], axis=-1)
    numbers = np.where(codes & 8, -1.0, 1.0) * _E2M1[codes & 7]
    scaled = numbers.reshape(*stored["scales"].shape, MXFP4_BLOCK) * 2.0 ** (stored["scales"][..., None] - 127.0)
    return scaled.reshape(*scaled.shape[:2], -1)


def _around_layers(random: np.random.Generator, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    return {
        "model.embed_tokens.weight": 0.3 * random.standard_normal((VOCAB, sizes["hidden"])),
        "model.norm.weight": norm(random, sizes["hidden"]),
        "lm_head.weight": matrix(random, VOCAB, sizes["hidden"], gain=2.0),
    }


def _write(directory: Path, config: dict[str, Any], tensors: Mapping[str, tuple[str, np.ndarray]]) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    write_tensors(directory / "model.safetensors", tensors)
    return directory
