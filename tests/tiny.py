"""Tiny random checkpoints on disk, in the published layouts, from numpy alone.

All sizes are pairwise different, so that a transposed or swapped tensor cannot pass unseen, and the weights are scaled
so that activations, attention scores and logits vary as a trained model's do. The same seed gives the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

HIDDEN, VOCAB = 48, 97  # shared by the target and its drafter; every other size is one model's own
TARGET = {"layers": 5, "q_heads": 4, "kv_heads": 2, "head_dim": 16, "ffn": 80}
DRAFTER = {"layers": 3, "q_heads": 9, "kv_heads": 3, "head_dim": 8, "ffn": 112}
WINDOW, BLOCK, MASK_ID, EOS_ID = 6, 4, 96, 95

ROPE_SCALINGS: Mapping[str, dict[str, Any] | None] = {
    "default": None,
    "linear": {"rope_type": "linear", "factor": 2.5},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {
        "rope_type": "yarn",
        "factor": 32.0,
        "original_max_position_embeddings": 64,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
    },
}

# variant -> (top-level is_causal or None, do all layers but the last slide, does the last)
DRAFTER_VARIANTS: Mapping[str, tuple[bool | None, bool, bool]] = {
    "full": (None, False, False),
    "causal": (True, False, False),
    "sliding": (None, True, True),  # no is_causal: sliding layers are causal
    "sliding_bidirectional": (False, True, True),
    "mixed": (None, True, False),  # causal sliding layers, the last one full and bidirectional
    "mixed_causal": (True, True, False),
    "mixed_bidirectional": (False, True, False),
}

_DTYPES: Mapping[str, Any] = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
_TORCH_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray], dtype: str = "F32") -> None:
    """Write tensors, rounded to `dtype`, in the order given; the header is padded to 8 bytes as the format asks."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    blobs, offset = [], 0
    for name, array in tensors.items():
        blob = np.ascontiguousarray(array).astype(_DTYPES[dtype]).tobytes()
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [offset, offset + len(blob)]}
        blobs.append(blob)
        offset += len(blob)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(blobs))


def tiny_target(
    directory: Path,
    architecture: str = "llama",
    *,
    tied: bool = False,
    seed: int = 0,
    dtype: str = "F32",
    rope: str = "default",
    rope_style: str = "old",
    attention_bias: bool = False,
    mlp_bias: bool = False,
    shards: int = 1,
    vocab_size: int = VOCAB,
    num_layers: int = TARGET["layers"],
    head_dim: int = TARGET["head_dim"],
    eos_token_ids: Sequence[int] = (),
    tokenizer: bool = False,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Write a random Llama or Qwen3 target; `config` overrides keys of config.json, `tokenizer` adds those files."""
    is_llama = architecture == "llama"
    sizes = {**TARGET, "layers": num_layers, "head_dim": head_dim}
    settings = _common_config(sizes, vocab_size, dtype, attention_bias)
    settings |= {
        "architectures": ["LlamaForCausalLM" if is_llama else "Qwen3ForCausalLM"],
        "model_type": architecture,
        "rms_norm_eps": 1e-5 if is_llama else 1e-6,
        "tie_word_embeddings": tied,
        "eos_token_id": list(eos_token_ids) or None,
        "bos_token_id": None,
        "pad_token_id": None,
    }
    if is_llama:
        settings |= {"mlp_bias": mlp_bias}
    settings |= _rope_config(rope, rope_style, theta=10000.0 if is_llama else 1000000.0)
    random = np.random.default_rng([seed, 1 if is_llama else 2])
    tensors = {"model.embed_tokens.weight": 0.3 * random.standard_normal((vocab_size, HIDDEN))}
    for index in range(num_layers):
        biases = (attention_bias, mlp_bias)
        tensors |= _decoder_layer(random, f"model.layers.{index}.", sizes, qk_norm=not is_llama, biases=biases)
    tensors["model.norm.weight"] = _norm(random, HIDDEN)
    if not tied:
        tensors["lm_head.weight"] = _matrix(random, vocab_size, HIDDEN, gain=2.0)
    _write_model(directory, settings | dict(config or {}), tensors, dtype, shards)
    if tokenizer:
        tiny_tokenizer(directory, vocab_size)
    return directory


def tiny_drafter(
    directory: Path,
    target_directory: Path,
    *,
    variant: str = "full",
    seed: int = 0,
    dtype: str = "F32",
    attention_bias: bool = False,
    yarn: bool = False,
    num_taps: int = 4,
    taps: Sequence[int] | None = None,
    block_size: int = BLOCK,
    window: int = WINDOW,
    mask_token_id: int | None = None,
    mask_in: str = "dflash_config",
    block_in: str = "dflash_config",
    num_layers: int = DRAFTER["layers"],
    head_dim: int = DRAFTER["head_dim"],
    rope_style: str = "old",
    shards: int = 1,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Write a random DFlash v1 drafter for a target on disk; `variant` is a row of DRAFTER_VARIANTS.

    `mask_in` and `block_in` choose where the two keys stand: "top" or "dflash_config". The default mask id is the last
    of the target's vocabulary. `taps` defaults to ids spread from the target's first layer to its last but one.
    """
    target = json.loads((target_directory / "config.json").read_text())
    vocab_size, num_target_layers = target["vocab_size"], target["num_hidden_layers"]
    taps = list(taps or np.linspace(0, num_target_layers - 2, num_taps).round().astype(int).tolist())
    sizes = {**DRAFTER, "layers": num_layers, "head_dim": head_dim}
    is_causal, others_slide, last_slides = DRAFTER_VARIANTS[variant]
    sliding = [others_slide] * (num_layers - 1) + [last_slides]
    places: dict[str, dict[str, Any]] = {"top": {}, "dflash_config": {"target_layer_ids": taps}}
    places[mask_in]["mask_token_id"] = vocab_size - 1 if mask_token_id is None else mask_token_id
    places[block_in]["block_size"] = block_size
    settings = _common_config(sizes, vocab_size, dtype, attention_bias)
    settings |= {
        "architectures": ["DFlashDraftModel"],
        "model_type": "qwen3",
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "num_target_layers": num_target_layers,
        "layer_types": ["sliding_attention" if slide else "full_attention" for slide in sliding],
        # Qwen3Config forgets sliding_window unless use_sliding_window is true.
        "use_sliding_window": any(sliding),
        "sliding_window": window if any(sliding) else None,
        "dflash_config": places["dflash_config"],
    }
    settings |= {} if is_causal is None else {"is_causal": is_causal}
    settings |= places["top"] | _rope_config("yarn" if yarn else "default", rope_style, theta=50000.0)
    random = np.random.default_rng([seed, 3])
    tensors = {"fc.weight": _matrix(random, HIDDEN, HIDDEN * len(taps)), "hidden_norm.weight": _norm(random, HIDDEN)}
    for index in range(num_layers):
        biases = (attention_bias, False)
        tensors |= _decoder_layer(random, f"layers.{index}.", sizes, qk_norm=True, biases=biases)
    tensors["norm.weight"] = _norm(random, HIDDEN)
    _write_model(directory, settings | dict(config or {}), tensors, dtype, shards)
    return directory


def tiny_tokenizer(directory: Path, vocab_size: int = VOCAB) -> None:
    """Write tokenizer files: a token per printable ASCII character (space 0), </s> 95, <mask> 96, a chat template."""
    vocab = {chr(32 + index): index for index in range(min(vocab_size, 95))}
    specials = {"</s>": EOS_ID, "<mask>": MASK_ID}
    added = [
        {"id": index, "content": text, "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for text, index in specials.items()
        if index < vocab_size
    ]
    model = {"type": "BPE", "vocab": vocab | {row["content"]: row["id"] for row in added}, "merges": []}
    model |= {"dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None}
    model |= {"fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    tokenizer = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None}
    tokenizer |= {"pre_tokenizer": None, "post_processor": None, "decoder": {"type": "Fuse"}, "model": model}
    template = (
        "{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}</s>{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "chat_template": template}
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    (directory / "tokenizer_config.json").write_text(json.dumps(settings | {"clean_up_tokenization_spaces": False}))


def _common_config(sizes: Mapping[str, int], vocab_size: int, dtype: str, attention_bias: bool) -> dict[str, Any]:
    return {
        "hidden_size": HIDDEN,
        "intermediate_size": sizes["ffn"],
        "num_hidden_layers": sizes["layers"],
        "num_attention_heads": sizes["q_heads"],
        "num_key_value_heads": sizes["kv_heads"],
        "head_dim": sizes["head_dim"],
        "vocab_size": vocab_size,
        "max_position_embeddings": 2048,
        "hidden_act": "silu",
        "attention_bias": attention_bias,
        "torch_dtype": _TORCH_NAMES[dtype],
    }


def _rope_config(kind: str, style: str, *, theta: float) -> dict[str, Any]:
    scaling = ROPE_SCALINGS[kind]
    if style == "new":
        return {"rope_parameters": {"rope_type": "default", **(scaling or {}), "rope_theta": theta}}
    return {"rope_theta": theta, "rope_scaling": scaling}


def _decoder_layer(
    random: np.random.Generator, prefix: str, sizes: Mapping[str, int], *, qk_norm: bool, biases: tuple[bool, bool]
) -> dict[str, np.ndarray]:
    q_size, kv_size = sizes["q_heads"] * sizes["head_dim"], sizes["kv_heads"] * sizes["head_dim"]
    attention_bias, mlp_bias = biases
    projections = {
        "self_attn.q_proj": (q_size, HIDDEN, attention_bias),
        "self_attn.k_proj": (kv_size, HIDDEN, attention_bias),
        "self_attn.v_proj": (kv_size, HIDDEN, attention_bias),
        "self_attn.o_proj": (HIDDEN, q_size, attention_bias),
        "mlp.gate_proj": (sizes["ffn"], HIDDEN, mlp_bias),
        "mlp.up_proj": (sizes["ffn"], HIDDEN, mlp_bias),
        "mlp.down_proj": (HIDDEN, sizes["ffn"], mlp_bias),
    }
    tensors = {}
    for name, (rows, columns, has_bias) in projections.items():
        tensors[f"{prefix}{name}.weight"] = _matrix(random, rows, columns)
        if has_bias:
            tensors[f"{prefix}{name}.bias"] = 0.3 * random.standard_normal(rows)
    for name in ("input_layernorm", "post_attention_layernorm"):
        tensors[f"{prefix}{name}.weight"] = _norm(random, HIDDEN)
    if qk_norm:
        for name in ("q_norm", "k_norm"):
            tensors[f"{prefix}self_attn.{name}.weight"] = _norm(random, sizes["head_dim"])
    return tensors


def _matrix(random: np.random.Generator, rows: int, columns: int, *, gain: float = 1.4) -> np.ndarray:
    return gain / np.sqrt(columns) * random.standard_normal((rows, columns))


def _norm(random: np.random.Generator, size: int) -> np.ndarray:
    return 1.0 + 0.25 * random.standard_normal(size)


def _write_model(
    directory: Path, config: dict[str, Any], tensors: dict[str, np.ndarray], dtype: str, shards: int
) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    if shards == 1:
        write_safetensors(directory / "model.safetensors", tensors, dtype)
        return
    weight_map: dict[str, str] = {}
    for index in range(shards):
        names = list(tensors)[index::shards]
        file = f"model-{index + 1:05d}-of-{shards:05d}.safetensors"
        write_safetensors(directory / file, {name: tensors[name] for name in names}, dtype)
        weight_map |= dict.fromkeys(names, file)
    total = sum(array.size * np.dtype(_DTYPES[dtype]).itemsize for array in tensors.values())
    index_json = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index_json))
