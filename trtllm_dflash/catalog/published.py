"""The rows of the registry, and what the config.json files of their models share, in few words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

DFLASH = "DFlashDraftModel"


@dataclass(frozen=True)
class KnownTarget:
    """A target's repository, its `architectures[0]`, and further keys of its config.json."""

    repository: str
    architecture: str
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class KnownDrafter:
    """A drafter's repository and the keys of its config.json that are published, with those that
    tell its dialect.
    """

    repository: str
    config: Mapping[str, Any] = field(default_factory=dict)
    architecture: str = DFLASH

    @property
    def block_size(self) -> int | None:
        """Tokens of a block, the anchor included; None if it is not published."""
        size: int | None = self.config.get("block_size")
        return size

    @property
    def has_sizes(self) -> bool:
        """Whether enough is published to reckon with: its layers, its width and its block."""
        return {"num_hidden_layers", "hidden_size", "block_size"} <= self.config.keys()


@dataclass(frozen=True)
class Pair:
    """A target with a drafter trained for it. `name` is what --target takes; `source` says who
    states the facts.
    """

    name: str
    target: KnownTarget
    drafter: KnownDrafter
    source: str


def drafter(
    repository: str,
    layers: int,
    hidden: int,
    ffn: int,
    block: int,
    taps: tuple[int, ...],
    of: int,
    *,
    heads: tuple[int, int, int] = (32, 8, 128),  # query heads, key and value heads, head_dim
    sliding: tuple[int, int] = (0, 0),  # how many of the first layers slide, and how far they see
    architecture: str = DFLASH,
    **keys: Any,
) -> KnownDrafter:
    """A drafter of Qwen3 layers that reads the target layers `taps` of `of`; `keys` are further
    ones of its config.
    """
    queries, keys_and_values, head_dim = heads
    slides, window = sliding
    kinds = ["sliding_attention"] * slides + ["full_attention"] * (layers - slides)
    config = {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_attention_heads": queries,
        "num_key_value_heads": keys_and_values,
        "head_dim": head_dim,
        "block_size": block,
        "num_target_layers": of,
        "target_layer_ids": list(taps),
        "layer_types": kinds,
    }
    window_keys = {"sliding_window": window, "use_sliding_window": True} if slides else {}
    return KnownDrafter(repository, config | window_keys | keys, architecture)


def qwen3(
    layers: int, hidden: int, ffn: int, heads: tuple[int, int], **keys: Any
) -> dict[str, Any]:
    """The config.json of a Qwen3 target; `keys` replace and add."""
    return decoder(layers, hidden, ffn, (*heads, 128), vocab=151936, eps=1e-6) | {
        "model_type": "qwen3",
        "max_position_embeddings": 40960,
        "rope_theta": 1000000,
        **keys,
    }


def decoder(
    layers: int, hidden: int, ffn: int, heads: tuple[int, int, int], *, vocab: int, eps: float
) -> dict[str, Any]:
    """The keys that all targets have; `heads`: query heads, key and value heads, head_dim."""
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "head_dim": heads[2],
        "vocab_size": vocab,
        "rms_norm_eps": eps,
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": False,
    }


GPT_OSS_YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "original_max_position_embeddings": 4096,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
}


def gpt_oss(layers: int, experts: int) -> dict[str, Any]:
    """gpt-oss: windows of 128 on every other layer, sinks, MXFP4 experts; everything else in
    BF16.
    """
    return decoder(layers, 2880, 2880, (64, 8, 64), vocab=201088, eps=1e-5) | {
        "model_type": "gpt_oss",
        "attention_bias": True,
        "num_local_experts": experts,
        "num_experts_per_tok": 4,
        "experts_per_token": 4,
        "swiglu_limit": 7.0,
        "sliding_window": 128,
        "layer_types": ["sliding_attention", "full_attention"] * (layers // 2),
        "max_position_embeddings": 131072,
        "initial_context_length": 4096,
        "rope_theta": 150000,
        "rope_scaling": GPT_OSS_YARN,
        "eos_token_id": 200002,
        "quantization_config": {
            "quant_method": "mxfp4",
            "modules_to_not_convert": [
                "model.layers.*.self_attn",
                "model.layers.*.mlp.router",
                "model.embed_tokens",
                "lm_head",
            ],
        },
    }


# Keys that every drafter has, with values that decide nothing. They stand where a row has none.
_ANY_DRAFTER = {
    "model_type": "qwen3",
    "num_hidden_layers": 5,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000,
    "block_size": 16,
    "mask_token_id": 0,
    "target_layer_ids": [1],
}


def target_json(target: KnownTarget) -> dict[str, Any]:
    """Return the target's config.json, as far as it is published."""
    return {"architectures": [target.architecture], **target.config}


def drafter_json(drafter: KnownDrafter) -> dict[str, Any]:
    """Return the drafter's config.json; keys that are not published have a value of any drafter."""
    return {"architectures": [drafter.architecture], **_ANY_DRAFTER, **drafter.config}
