"""Writes the files of an engine directory beside the engine: config.json and the tokenizer's."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trtllm_dflash import __version__
from trtllm_dflash.checkpoint.loader import Checkpoint
from trtllm_dflash.checkpoint.tokenizer_files import copy_tokenizer_files
from trtllm_dflash.engine_dir.config_checks import FORMAT
from trtllm_dflash.engine_dir.files import CONFIG_FILE
from trtllm_dflash.engine_dir.io_tensors import IoTensor
from trtllm_dflash.models.base import TargetConfig
from trtllm_dflash.models.drafter import DrafterConfig
from trtllm_dflash.options.draft_len import AUTO
from trtllm_dflash.options.resolved_build import ResolvedBuild

# Field of TargetConfig by TensorRT-LLM's name for it in config.json, where the two differ.
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


@dataclass(frozen=True)
class EngineContents:
    """What config.json says of an engine: its models, sizes, inputs and outputs."""

    target: Checkpoint[TargetConfig]
    drafter: Checkpoint[DrafterConfig] | None
    sizes: ResolvedBuild
    io: Sequence[IoTensor]
    draft_vocab_size: int
    fp8_kv: bool
    text: Mapping[str, Any] | None = None  # what `builder.text_settings` decides

    def to_json(self) -> dict[str, Any]:
        """Return the contents of config.json."""
        pretrained = _pretrained(self.target.config)
        pretrained["dtype"] = self.sizes.dtype
        pretrained["quantization"] = _quantization(self.target)
        pretrained["quantization"]["kv_cache_quant_algo"] = "FP8" if self.fp8_kv else None
        text = dict(self.text or {})
        pretrained["eos_token_ids"] = text.pop("eos_token_ids", pretrained["eos_token_ids"])
        return {
            "format": FORMAT,
            "version": __version__,
            "pretrained_config": pretrained,
            **text,
            "build_config": self.sizes.to_json(),
            "dflash": self._dflash(self.drafter) if self.drafter else None,
            "io": [tensor.to_json() for tensor in self.io],
        }

    def _dflash(self, drafter: Checkpoint[DrafterConfig]) -> dict[str, Any]:
        config = drafter.config
        return {
            "block_size": self.sizes.block_size,
            "trained_block_size": config.block_size,
            "draft_len": AUTO if self.sizes.auto_draft_len else self.sizes.draft_len,
            "draft_vocab_size": self.draft_vocab_size,
            "mask_token_id": config.mask_token_id,
            "quantization": _quantization(drafter),
            "target_layer_ids": config.target_layer_ids,
            "num_hidden_layers": config.num_layers,
            "layers": [asdict(layer) for layer in config.layers],
            "walk": None if config.walk is None else asdict(config.walk),
        }


def write_engine_files(directory: Path, config: Mapping[str, Any], target: Path) -> None:
    """Write config.json, and copy the tokenizer files that the directory `target` has."""
    text = json.dumps(config, indent=2) + "\n"
    (directory / CONFIG_FILE).write_text(text, encoding="utf-8")
    copy_tokenizer_files(target, directory)


def _pretrained(config: TargetConfig) -> dict[str, Any]:
    return {
        name: getattr(config, _PRETRAINED_NAMES.get(name, name)) for name in _PRETRAINED_FIELDS
    }


def _quantization(checkpoint: Checkpoint[Any]) -> dict[str, Any]:
    """Return TensorRT-LLM's section `quantization`, with the number of linears of each format."""
    counts = Counter(fmt.algo for fmt in checkpoint.formats.values())
    algo = next(iter(counts), None) if len(counts) < 2 else "MIXED_PRECISION"
    return {"quant_algo": algo, "quantized_linears": dict(counts)}
