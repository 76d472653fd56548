"""The files of an engine directory that are not the engine itself: config.json and the
tokenizer.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trtllm_dflash import __version__
from trtllm_dflash.builder.resolve import ResolvedModels
from trtllm_dflash.checkpoint.loader import Checkpoint
from trtllm_dflash.checkpoint.tokenizer_files import copy_tokenizer_files
from trtllm_dflash.models.base import TargetConfig
from trtllm_dflash.models.drafter import DrafterConfig

CONFIG_FILE = "config.json"

# TensorRT-LLM's name in config.json -> our field, where the two differ.
_PRETRAINED_NAMES = {
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_q_heads",
    "num_key_value_heads": "num_kv_heads",
    "head_size": "head_dim",
}
_PRETRAINED_FIELDS = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_size",
    "intermediate_size",
    "max_position_embeddings",
    "tie_word_embeddings",
    "eos_token_ids",
    "bos_token_id",
)


def write_layout(directory: Path, models: ResolvedModels) -> None:
    """Write config.json, and copy the tokenizer files that the target has."""
    text = json.dumps(engine_config(models), indent=2) + "\n"
    (directory / CONFIG_FILE).write_text(text)
    copy_tokenizer_files(models.target.directory, directory)


def engine_config(models: ResolvedModels) -> dict[str, Any]:
    """The contents of config.json."""
    return {
        "version": __version__,
        "pretrained_config": (
            _pretrained(models.target.config)
            | {
                "dtype": models.resolved.dtype,
                "quantization": _quantization(models.target) | _kv_cache(models),
            }
        ),
        "build_config": models.resolved.to_json(),
        "dflash": _dflash(models, models.drafter) if models.drafter else None,
        "io": [port.to_json() for port in models.ports],
    }


def _pretrained(config: TargetConfig) -> dict[str, Any]:
    return {name: getattr(config, _PRETRAINED_NAMES.get(name, name)) for name in _PRETRAINED_FIELDS}


def _quantization(checkpoint: Checkpoint[Any]) -> dict[str, Any]:
    """As TensorRT-LLM writes it; how many linears of each format beside it."""
    counts = Counter(row.algo for row in checkpoint.formats.values())
    algo = next(iter(counts), None) if len(counts) < 2 else "MIXED_PRECISION"
    return {"quant_algo": algo, "quantized_linears": dict(counts)}


def _kv_cache(models: ResolvedModels) -> dict[str, Any]:
    return {"kv_cache_quant_algo": None if models.kv_scales is None else "FP8"}


def _dflash(models: ResolvedModels, drafter: Checkpoint[DrafterConfig]) -> dict[str, Any]:
    config, sizes, vocab = drafter.config, models.resolved, models.draft_vocab
    return {
        "block_size": sizes.block_size,
        "trained_block_size": config.block_size,
        "draft_len": sizes.draft_len,
        "draft_vocab_size": models.target.config.vocab_size if vocab is None else len(vocab),
        "mask_token_id": config.mask_token_id,
        "quantization": _quantization(drafter),
        "target_layer_ids": config.target_layer_ids,
        "num_hidden_layers": config.num_layers,
        "layers": [asdict(layer) for layer in config.layers],
    }
