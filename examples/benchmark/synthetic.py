"""Writes a random checkpoint of a large published model's layer shapes, and its drafter's, to see
what a build costs.

The weights mean nothing: each tensor is a piece of random data, repeated. Names, shapes and types
are those that the package expects of such a config.json, so that every check of a real checkpoint
is made. Memory: some MiB.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from zlib import crc32

import click
import ml_dtypes
import numpy as np

from trtllm_dflash.checkpoint.dtypes import DTYPE_BITS
from trtllm_dflash.checkpoint.from_config import checkpoint_of_config
from trtllm_dflash.checkpoint.quant_config import read_quantization
from trtllm_dflash.checkpoint.quantized_tensors import is_e8m0_scale
from trtllm_dflash.checkpoint.safetensors import TensorInfo
from trtllm_dflash.checkpoint.writer import FileLayout, write_file
from trtllm_dflash.models.drafter import DrafterConfig
from trtllm_dflash.models.registry import read_target_config

_CHUNK = 1 << 23

_YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "original_max_position_embeddings": 4096,
    "truncate": False,
}
_GPT_OSS: dict[str, Any] = {
    "architectures": ["GptOssForCausalLM"],
    "model_type": "gpt_oss",
    "attention_bias": True,
    "head_dim": 64,
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "max_position_embeddings": 131072,
    "num_attention_heads": 64,
    "num_experts_per_tok": 4,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_scaling": _YARN,
    "rope_theta": 150000,
    "sliding_window": 128,
    "swiglu_limit": 7.0,
    "vocab_size": 201088,
    "quantization_config": {
        "quant_method": "mxfp4",
        "modules_to_not_convert": [
            "model.layers.*.self_attn",
            "model.layers.*.mlp.router",
            "lm_head",
        ],
    },
}
_QWEN3_MOE: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "head_dim": 128,
    "hidden_size": 2048,
    "intermediate_size": 5472,
    "max_position_embeddings": 262144,
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_experts_per_tok": 8,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000000,
    "vocab_size": 151936,
}
# model -> (its config.json but for layers and experts, layers, experts, its drafter's FFN, block,
# mask token)
_MODELS: Mapping[str, tuple[dict[str, Any], int, int, int, int, int]] = {
    "gpt-oss-120b": (_GPT_OSS, 36, 128, 7680, 10, 200000),
    "gpt-oss-20b": (_GPT_OSS, 24, 32, 7680, 8, 200000),
    "qwen3-coder-30b": (_QWEN3_MOE, 48, 128, 6144, 16, 151669),
}
_DRAFTER_LAYERS, _TAPS = 8, 5
_FROM_TARGET = (
    "attention_bias", "head_dim", "hidden_size", "max_position_embeddings", "num_attention_heads",
    "num_key_value_heads", "rms_norm_eps", "rope_scaling", "rope_theta", "vocab_size",
)  # fmt: skip


def target_config(model: str, layers: int, experts: int) -> dict[str, Any]:
    """Return the config.json of a target with so many layers, and experts in each."""
    config = _MODELS[model][0] | {"num_hidden_layers": layers, "tie_word_embeddings": False}
    if "moe_intermediate_size" in config:
        return config | {"num_experts": experts}
    layer_types = ["sliding_attention", "full_attention"] * layers
    return config | {"num_local_experts": experts, "layer_types": layer_types[:layers]}


def drafter_config(model: str, target: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config.json of its published drafter.

    A target of fewer than six layers has fewer taps.
    """
    *_, ffn, block_size, mask = _MODELS[model]
    layers = target["num_hidden_layers"]
    taps = sorted({round(index * (layers - 2) / (_TAPS - 1)) for index in range(_TAPS)})
    return {key: target[key] for key in _FROM_TARGET if key in target} | {
        "architectures": ["DFlashDraftModel"],
        "model_type": "qwen3",
        "block_size": block_size,
        "dflash_config": {"mask_token_id": mask, "target_layer_ids": taps},
        "intermediate_size": ffn,
        "num_hidden_layers": _DRAFTER_LAYERS,
        "num_target_layers": layers,
        "tie_word_embeddings": False,
    }


def write(directory: Path, config_json: dict[str, Any], config: Any) -> int:
    """Write a checkpoint of one file, and return its bytes; the same config gives the same
    bytes.
    """
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config_json, indent=2), encoding="utf-8")
    quantization = read_quantization(config_json, None, str(directory))
    infos = checkpoint_of_config(config, quantization, str(directory)).tensors
    # As the safetensors package does: wide types first, then by name.
    ordered = sorted(infos.values(), key=lambda info: (-DTYPE_BITS[info.dtype], info.name))
    layout = FileLayout.of({info.name: (info.dtype, info.shape) for info in ordered})
    buffers = (buffer for info in ordered for buffer in _buffers(info))
    write_file(directory / "model.safetensors", layout, buffers)
    return layout.nbytes


def _buffers(info: TensorInfo) -> Iterator[bytes]:
    chunk, left = _random(info), info.nbytes
    while left:
        yield chunk[:left]
        left -= min(left, len(chunk))


def _random(info: TensorInfo) -> bytes:
    """Numbers of such a size that activations keep theirs, layer after layer."""
    random = np.random.default_rng(
        crc32(info.name.encode())
    )  # TensorRT-RTX keeps equal weights once
    if is_e8m0_scale(info.name):
        return random.integers(
            118, 122, _CHUNK, np.uint8
        ).tobytes()  # with E2M1 codes about 1/50
    if info.dtype == "U8":
        return random.bytes(_CHUNK)
    if info.dtype == "F8_E4M3":  # from 2^-2 to 2^2; scales are positive
        signs = 0 if info.name.endswith("_scale") else random.integers(0, 2, _CHUNK, np.uint8)
        return (random.integers(0x28, 0x48, _CHUNK, np.uint8) + 128 * signs).tobytes()
    if info.dtype == "F32":  # scales of whole tensors
        return random.uniform(0.004, 0.006, _CHUNK // 4).astype(np.float32).tobytes()
    numbers = random.standard_normal(_CHUNK // 2, np.float32)
    numbers *= info.shape[-1] ** -0.5 if len(info.shape) > 1 else 0.1
    if info.name.endswith("norm.weight"):
        numbers += 1
    return numbers.astype(ml_dtypes.bfloat16).tobytes()


@click.command()
@click.argument("output", type=click.Path(path_type=Path, exists=False))
@click.option(
    "--model", type=click.Choice(list(_MODELS)), default="gpt-oss-120b", show_default=True
)
@click.option("--layers", type=int, help="of the target [default: its own]")
@click.option("--experts", type=int, help="of each layer [default: its own]")
def main(output: Path, model: str, layers: int | None, experts: int | None) -> None:
    """Write OUTPUT/target and OUTPUT/drafter."""
    _, own_layers, own_experts, *_ = _MODELS[model]
    target = target_config(model, layers or own_layers, experts or own_experts)
    drafter = drafter_config(model, target)
    for name, config_json, config in (
        ("target", target, read_target_config(target, None, "target")),
        ("drafter", drafter, DrafterConfig.from_hf(drafter, "drafter")),
    ):
        size = write(output / name, config_json, config)
        click.echo(f"{output / name}: {size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
