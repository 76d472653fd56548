"""Mutated checkpoints: what a number stands for, and what loading it must come to."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from tests.bad_checkpoints import (  # noqa: F401  (they register good checkpoints)
    dflash2_cases,
    expert_cases,
    fp8_expert_cases,
    hybrid_bases,
    maker_cases,
    published_cases,
)
from tests.bad_checkpoints.make_bad import GOOD, SINGLE, BadCheckpoint, good_target
from tests.fuzz.mutate import (
    ODD_VALUES,
    damage_file,
    mutate_bytes,
    mutate_json,
    mutate_json_text,
)
from trtllm_dflash.checkpoint.finite import check_finite
from trtllm_dflash.checkpoint.formats import Holds
from trtllm_dflash.checkpoint.links import following_links
from trtllm_dflash.checkpoint.loader import (
    load_drafter,
    load_target,
    warn_of_unmet_settings,
)
from trtllm_dflash.checkpoint.pair_checks import check_pair

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 48}
# Keys of config.json that change what a model computes, with values that occur in published ones.
MEANINGFUL: dict[str, tuple[Any, ...]] = {
    "is_causal": (True, False, None),
    "hidden_act": ("silu", "swish", "gelu", "relu", None),
    "rms_norm_eps": (1e-5, 1e-6, 1e-2, 0.0, 0),
    "rope_theta": (10000, 1e6, 500000.0, 10000.0, None),
    "rope_scaling": (
        None,
        {},
        {"type": "linear", "factor": 2.0},
        {"rope_type": "linear", "factor": 4},
        {"rope_type": "dynamic", "factor": 4.0},
        {"rope_type": "default", "factor": 1.0},
        {"rope_type": "default"},
        YARN,
        YARN | {"attn_factor": 1.0},
        YARN | {"attention_factor": 1.3},
        YARN | {"beta_fast": 16, "beta_slow": 2, "truncate": False},
        YARN | {"mscale": 1.0, "mscale_all_dim": 0.8},
        {"type": "yarn", "factor": 2.0},
        {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4.0}
        | {"original_max_position_embeddings": 32.0},
        {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 2.0},
        {"rope_type": "longrope", "long_factor": [1.0], "short_factor": [1.0]},
        {"mrope_section": [2, 3, 3], "type": "mrope"},
    ),
    "rope_parameters": (
        None,
        {"rope_type": "default", "rope_theta": 20000.0},
        YARN | {"rope_theta": 1e5},
        {"rope_type": "linear", "factor": 3.0, "rope_theta": 1e4},
        {"rope_theta": 1e4, "rope_type": "default", "partial_rotary_factor": 0.5},
        {"full_attention": {"rope_type": "default", "rope_theta": 1e4}},
    ),
    "original_max_position_embeddings": (16, 48, None),
    "max_position_embeddings": (64, 64.0, 128, 2048),
    "partial_rotary_factor": (1.0, 0.5, None),
    "tie_word_embeddings": (True, False, None),
    "attention_bias": (True, False, None),
    "mlp_bias": (True, False, None),
    "head_dim": (16, 16.0, 12, None),
    "num_key_value_heads": (1, 2, 4, None),
    "num_hidden_layers": (4, 5, 5.0, 6),
    "use_sliding_window": (True, False, None),
    "sliding_window": (3, 5, 0, None),
    "max_window_layers": (0, 2, 9, None),
    "layer_types": (
        None,
        ["full_attention"] * 5,
        ["sliding_attention"] * 5,
        ["full_attention", "sliding_attention"] * 2 + ["full_attention"],
        ["attention"] * 5,
    ),
    "vocab_size": (97, 97.0, 96, 98),
    "attention_dropout": (0.5, 0.0),
    "pretraining_tp": (1, 2),
    "attn_implementation": ("eager",),
    "_attn_implementation": ("eager",),
    "torch_dtype": ("bfloat16", "float16", "float32", None),
    "dtype": ("bfloat16", "auto"),
    "final_logit_softcapping": (30.0, None),
    "attn_logit_softcapping": (30.0, 0.0),
    "query_pre_attn_scalar": (64,),
    "logits_scaling": (2.0,),
    "embedding_multiplier": (2.0,),
    "residual_multiplier": (0.5,),
    "num_experts": (7, 1, 0),
    "num_experts_per_tok": (1, 2, 3),
    "norm_topk_prob": (True, False, None),
    "decoder_sparse_step": (1, 2),
    "mlp_only_layers": ([], [1], None),
    "shared_expert_intermediate_size": (0, 16),
    "router_aux_loss_coef": (0.1,),
    "output_router_logits": (True,),
    "moe_intermediate_size": (40, 24),
    "swiglu_limit": (1.5, 7.0, None),
    "swiglu_alpha": (1.702, 1.0),
    "num_local_experts": (5, 0),
    "per_layer_config": ({"0": {"rms_norm_eps": 0.1}}, None),
    "quantization_config": (
        None,
        {},
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "gptq"},
        {"quant_method": "modelopt", "quant_algo": "FP8"},
    ),
    "compression_config": ({}, {"format": "dense"}),
    "is_encoder_decoder": (True, False),
    "is_decoder": (True, False),
    "add_cross_attention": (True,),
    "chunk_size_feed_forward": (4,),
    "use_cache": (True, False),
    "pad_token_id": (0, -1, 96, None),
    "bos_token_id": (1, None),
    "eos_token_id": (None, 3, [3, 4], 3.0, []),
    "repetition_penalty": (1.3,),
}
# The same for hybrid targets of two layers or six.
HYBRID_MEANINGFUL: dict[str, tuple[Any, ...]] = {
    "layer_types": (
        None,
        ["full_attention"] * 6,
        ["linear_attention"] * 6,
        ["linear_attention", "full_attention"] * 3,
        ["full_attention"] + ["linear_attention"] * 5,
        ["sliding_attention", "full_attention"] * 3,
    ),
    "full_attention_interval": (1, 2, 4, 4.0, 0, None),
    "num_hidden_layers": (4, 5, 6, 8),
    "rope_parameters": (
        None,
        {"rope_type": "default", "rope_theta": 20000.0},
        {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25},
        {"rope_theta": 1e4, "partial_rotary_factor": 1.0, "mrope_section": [4, 2, 2]},
        {"rope_theta": 1e4, "partial_rotary_factor": 0.3, "mrope_interleaved": False},
        YARN | {"rope_theta": 1e5, "partial_rotary_factor": 0.75},
        {"rope_type": "linear", "factor": 3.0, "rope_theta": 1e4},
        {"full_attention": {"rope_type": "default", "rope_theta": 1e4}},
    ),
    "partial_rotary_factor": (1.0, 0.5, 0.25, 0.75, None),
    "num_key_value_heads": (1, 2, 3, 6, None),
    "linear_num_key_heads": (1, 3, 9, 4, None),
    "linear_num_value_heads": (9, 3, 6, None),
    "linear_key_head_dim": (12, 6, 12.0, None),
    "linear_value_head_dim": (10, 5, None),
    "linear_conv_kernel_dim": (4, 3, 4.0, None),
    "attn_output_gate": (True, False, None),
    "output_gate_type": ("swish", "silu", "sigmoid", None),
    "mamba_ssm_dtype": ("float32", "bfloat16", None),
    "intermediate_size": (80, 81, None),
    "shared_expert_intermediate_size": (28, 0, 16, None),
    "num_experts": (7, 6, 0, None),
    "num_experts_per_tok": (1, 3, 7, 8, None),
    "moe_intermediate_size": (20, 10, None),
    "mtp_num_hidden_layers": (0, 1),
    "model_type": ("qwen3_5", "qwen3_5_text", "qwen3_next", "qwen3_5_moe_text", None),
}


def mutate_config(config: dict[str, Any], random: Random) -> dict[str, Any]:
    """Return a config.json with meaningful keys set, or any value changed."""
    changed: dict[str, Any] = json.loads(json.dumps(config))
    text = changed.get("text_config")
    if isinstance(text, dict) and random.random() < 0.8:
        return changed | {"text_config": mutate_config(text, random)}
    if random.random() < 0.4:
        mutated = mutate_json(changed, random, times=random.choice((1, 1, 2)))
        return mutated if isinstance(mutated, dict) else changed
    meaningful = MEANINGFUL
    if "linear_num_key_heads" in changed and random.random() < 0.7:
        meaningful = HYBRID_MEANINGFUL
    for key in random.sample(sorted(meaningful), random.choice((1, 1, 2, 3))):
        value = random.choice(meaningful[key])
        if value is None and random.random() < 0.5:
            changed.pop(key, None)
        else:
            changed[key] = value
    return changed


def _config(model: BadCheckpoint, random: Random) -> None:
    if random.random() < 0.6:
        model.config = mutate_config(model.config, random)
    else:
        text = mutate_json_text(json.dumps(model.config), random, times=random.choice((1, 2)))
        model.files["config.json"] = text


def _header(model: BadCheckpoint, random: Random) -> None:
    header = mutate_json(model.weights.header, random, times=random.choice((1, 1, 2)))
    model.weights.header_text = json.dumps(header).encode("utf-8", "surrogatepass")


def _bytes(model: BadCheckpoint, random: Random) -> None:
    model.files[SINGLE] = mutate_bytes(model.weights.to_bytes(), random)
    model.stored = False


def _values(model: BadCheckpoint, random: Random) -> None:
    model.weights.data = bytearray(mutate_bytes(bytes(model.weights.data), random))


def _names(model: BadCheckpoint, random: Random) -> None:
    """Rename, drop or exchange tensors, or give one another type of the same size."""
    header = model.weights.header
    first, second = random.sample(sorted(header), 2)
    kind = random.choice(("rename", "drop", "exchange", "type"))
    if kind == "rename":
        other = random.choice(
            (first.removesuffix(".weight"), f"model.{first}", f"{first}_scale")
        )
        header[other] = header.pop(first)
    elif kind == "drop":
        del header[first]
    elif kind == "exchange":
        header[first], header[second] = header[second], header[first]
    else:
        header[first]["dtype"] = random.choice(("F16", "BF16", "I16", "U16", "F8_E4M3", "U8"))


def _quantization(model: BadCheckpoint, random: Random) -> None:
    described = model.config.get("quantization_config") or {"quant_algo": "FP8"}
    details = {
        "quant_algo": described.get("quant_algo"),
        "kv_cache_quant_algo": random.choice((None, "FP8")),
        "exclude_modules": random.choice((None, ["lm_head"], ["lm_head*"], ["*"])),
        "quantized_layers": {"lm_head": {"quant_algo": "NVFP4"}},
    }
    quantization = {key: value for key, value in details.items() if random.random() < 0.7}
    file = mutate_json({"quantization": quantization}, random)
    model.files["hf_quant_config.json"] = json.dumps(file).encode("utf-8", "surrogatepass")
    if isinstance(model.config.get("quantization_config"), dict) and random.random() < 0.5:
        model.config = mutate_json(model.config, random)


def _generation(model: BadCheckpoint, random: Random) -> None:
    settings = {"eos_token_id": [3, 4], "temperature": 0.6, "repetition_penalty": 1.1}
    model.files["generation_config.json"] = mutate_json_text(json.dumps(settings), random)


def _index(model: BadCheckpoint, random: Random) -> None:
    weight_map = model.shard()
    index = mutate_json({"metadata": {}, "weight_map": weight_map}, random)
    text = json.dumps(index).encode("utf-8", "surrogatepass")
    model.files["model.safetensors.index.json"] = text


_MUTATIONS: tuple[tuple[Callable[[BadCheckpoint, Random], None], int], ...] = (
    (_config, 9),
    (_header, 4),
    (_bytes, 2),
    (_values, 1),
    (_names, 2),
    (_quantization, 2),
    (_generation, 1),
    (_index, 1),
)


def write_mutant(number: int, directory: Path) -> str:
    """Write mutant `number`; return its role, "target" or "drafter"."""
    random = Random(f"checkpoint {number}")
    base = random.choice(sorted(GOOD))
    model = GOOD[base]()
    kinds, weights = zip(*_MUTATIONS, strict=True)
    kind = random.choices(kinds, weights)[0]
    if kind is _index and "quant" in "".join(map(str, model.config)):
        kind = _config  # shards are made of plain tensors
    kind(model, random)
    if not isinstance(model.config, dict):
        model.config = {"architectures": random.choice(ODD_VALUES)}
    try:
        model.write(directory)
    except (ValueError, OverflowError):  # a length that no file can have
        model.weights.header_length = 0
        shutil.rmtree(directory)
        model.write(directory)
    if random.random() < 0.05:
        damage_file(random.choice(sorted(directory.iterdir())), random)
    return base.split()[-1]


def load_mutant(number: int) -> str:
    """Load a mutant as `build` does, with its pair and all bytes; return what it is."""
    with tempfile.TemporaryDirectory() as folder, following_links(allowed=number % 7 == 0):
        directory = Path(folder) / "mutant"
        role = write_mutant(number, directory)
        if role == "target":
            target = load_target(directory)
            warn_of_unmet_settings(target)
            check_finite(target)
            for holds in Holds:
                target.weight_bytes(2, holds)
            return f"a target of {target.num_parameters} parameters"
        drafter = load_drafter(directory)
        check_finite(drafter)
        good_target(4).write(Path(folder) / "good")
        check_pair(load_target(Path(folder) / "good"), drafter)
        return f"a drafter of {drafter.num_parameters} parameters"
