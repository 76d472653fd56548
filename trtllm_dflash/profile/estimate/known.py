"""Shapes of published models, so that an estimate needs neither weights nor a network.

Each is what the model's config.json says, as far as sizes go, in its own keys. What is not certain is not here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from trtllm_dflash.checkpoint.source import read_json_in
from trtllm_dflash.config.drafter import DrafterConfig
from trtllm_dflash.config.target import TargetConfig
from trtllm_dflash.errors import UsageError
from trtllm_dflash.profile.estimate.experts import Experts


@dataclass(frozen=True, eq=False)
class KnownTarget:
    """A target's shape."""

    config_json: Mapping[str, Any]
    source: str
    expert_number: str = "bf16"

    @cached_property
    def config(self) -> TargetConfig:
        return TargetConfig.from_hf(dict(self.config_json), None, self.source)

    @property
    def experts(self) -> Experts | None:
        """Those of a layer, where it has any."""
        moe = self.config.moe
        return None if moe is None else Experts(moe.num_experts, moe.top_k)


@dataclass(frozen=True, eq=False)
class KnownDrafter:
    """A drafter's shape and the target that it is for. `tau`: published tokens a step, and where and on what."""

    target: str
    config_json: Mapping[str, Any]
    source: str
    tau: float | None = None
    tau_source: str = ""

    @cached_property
    def config(self) -> DrafterConfig:
        return DrafterConfig.from_hf(dict(self.config_json), self.source)


def _target(
    architecture: str, sizes: tuple[int, ...], vocab: int, *, tied: bool = False, **more: Any
) -> dict[str, Any]:
    hidden, intermediate, layers, q_heads, kv_heads, head_dim = sizes
    return {
        "architectures": [architecture],
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": q_heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
        "rms_norm_eps": 1e-6,  # neither this nor the base of RoPE costs anything
        "rope_theta": 1e6,
        "max_position_embeddings": 131072,
        **more,
    }


def _drafter(
    sizes: tuple[int, ...], vocab: int, taps: tuple[int, ...], target_layers: int, block: int, **more: Any
) -> dict[str, Any]:
    config = _target("DFlashDraftModel", sizes, vocab, **more)
    mask = {"mask_token_id": vocab - 1, "target_layer_ids": list(taps), "block_size": block}
    return config | {"num_target_layers": target_layers, "dflash_config": mask}


Known = TypeVar("Known", KnownTarget, KnownDrafter)


def _oss(layers: int, experts: int) -> dict[str, Any]:
    return {
        "attention_bias": True,
        "num_local_experts": experts,
        "num_experts_per_tok": 4,
        "layer_types": ["sliding_attention", "full_attention"] * (layers // 2),
        "sliding_window": 128,
    }


_QWEN3, _LLAMA = "Qwen3ForCausalLM", "LlamaForCausalLM"
_GPT_OSS = "GptOssForCausalLM"
_CODER_EXPERTS: dict[str, Any] = {
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
}
_PAPER = "DFlash, arXiv 2602.06036"
TARGETS: Mapping[str, KnownTarget] = {
    "Qwen/Qwen3-8B": KnownTarget(_target(_QWEN3, (4096, 12288, 36, 32, 8, 128), 151936), "config.json"),
    "Qwen/Qwen3-4B": KnownTarget(_target(_QWEN3, (2560, 9728, 36, 32, 8, 128), 151936, tied=True), "config.json"),
    "meta-llama/Llama-3.1-8B-Instruct": KnownTarget(
        _target(_LLAMA, (4096, 14336, 32, 32, 8, 128), 128256), "config.json"
    ),
    "Qwen/Qwen3-Coder-30B-A3B-Instruct": KnownTarget(
        _target("Qwen3MoeForCausalLM", (2048, 6144, 48, 32, 4, 128), 151936, **_CODER_EXPERTS),
        "model card (layers, heads, experts); Qwen3-30B-A3B's config.json, which it shares (hidden sizes)",
    ),
    "openai/gpt-oss-20b": KnownTarget(
        _target(_GPT_OSS, (2880, 2880, 24, 64, 8, 64), 201088, **_oss(24, 32)),
        "config.json",
        expert_number="mxfp4",
    ),
    "openai/gpt-oss-120b": KnownTarget(
        _target(_GPT_OSS, (2880, 2880, 36, 64, 8, 64), 201088, **_oss(36, 128)),
        "config.json",
        expert_number="mxfp4",
    ),
}
DRAFTERS: Mapping[str, KnownDrafter] = {
    "z-lab/Qwen3-8B-DFlash-b16": KnownDrafter(
        "Qwen/Qwen3-8B",
        _drafter((4096, 12288, 5, 32, 8, 128), 151936, (1, 9, 17, 25, 33), 36, 16),
        "config.json",
        6.49,
        f"{_PAPER}, table 1, mean of 7 benchmarks, greedy",
    ),
    "z-lab/Qwen3-4B-DFlash-b16": KnownDrafter(
        "Qwen/Qwen3-4B",
        _drafter((2560, 9728, 5, 32, 8, 128), 151936, (1, 9, 17, 25, 33), 36, 16),
        "config.json",
        6.54,
        f"{_PAPER}, table 1, mean of 7 benchmarks, greedy",
    ),
    "z-lab/LLaMA3.1-8B-Instruct-DFlash-UltraChat": KnownDrafter(
        "meta-llama/Llama-3.1-8B-Instruct",
        _drafter((4096, 12288, 5, 32, 8, 128), 128256, (1, 8, 15, 22, 29), 32, 10),
        "config.json",
        4.32,
        f"{_PAPER}, table 5, mean of GSM8K, HumanEval and Alpaca, greedy",
    ),
    "z-lab/Qwen3-Coder-30B-A3B-DFlash": KnownDrafter(
        "Qwen/Qwen3-Coder-30B-A3B-Instruct",
        _drafter((2048, 6144, 8, 32, 4, 128), 151936, (1, 12, 23, 34, 45), 48, 16),
        "config.json",
        8.09,
        f"{_PAPER}, table 3, HumanEval, greedy",
    ),
    "z-lab/gpt-oss-20b-DFlash": KnownDrafter(
        "openai/gpt-oss-20b",
        _drafter((2880, 7680, 8, 64, 8, 64), 201088, (1, 6, 11, 16, 21), 24, 8, attention_bias=True),
        "config.json",
        4.53,
        f"{_PAPER}, table 11, mean of MATH-500, HumanEval and MT-Bench",
    ),
    "z-lab/gpt-oss-120b-DFlash": KnownDrafter(
        "openai/gpt-oss-120b",
        _drafter((2880, 7680, 8, 64, 8, 64), 201088, (1, 9, 17, 25, 33), 36, 10, attention_bias=True),
        "config.json",
        4.5,
        f"{_PAPER}, table 11, mean of MATH-500, HumanEval and MT-Bench",
    ),
}


def find_target(name: str) -> KnownTarget:
    """The known target called `name`, with or without its owner; or the one whose config.json is in that directory.

    Raises:
        UsageError: listing those that are known.
    """
    found = _find(TARGETS, name)
    if found is None:
        found = KnownTarget(_config_json(name, "target", TARGETS), name)
    return found


def find_drafter(name: str) -> KnownDrafter:
    """The drafter called `name`; see `find_target`."""
    found = _find(DRAFTERS, name)
    if found is None:
        found = KnownDrafter("", _config_json(name, "drafter", DRAFTERS), name)
    return found


def _find(table: Mapping[str, Known], name: str) -> Known | None:
    return next((row for key, row in table.items() if name.lower() in (key.lower(), key.split("/")[-1].lower())), None)


def _config_json(name: str, kind: str, known: Mapping[str, object]) -> dict[str, Any]:
    config = read_json_in(Path(name), "config.json") if Path(name).is_dir() else None
    if config is None:
        raise UsageError(
            f"--{kind} {name!r} is neither a directory with a config.json nor a known shape: {', '.join(known)}"
        )
    return config
