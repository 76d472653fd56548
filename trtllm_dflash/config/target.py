"""The target LLM's configuration, read once from Hugging Face's config.json and frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trtllm_dflash.config.hf import HfReader, Only, shown
from trtllm_dflash.config.quantization import COMPRESSED
from trtllm_dflash.config.rope import RopeConfig

# Bounds on untrusted sizes: far above any model, low enough that no table of names or shapes can exhaust memory.
MAX_LAYERS = 1024
MAX_SIZE = 1 << 24


@dataclass(frozen=True)
class TargetFamily:
    """What one Hugging Face architecture implies, and what its config class fills in where a key is missing."""

    architecture: str
    model_type: str
    qk_norm: bool
    mlp_bias: bool
    head_dim_from_hidden: bool
    default_rope_theta: float | None


# Hugging Face architecture name -> family. Llama configs older than a key rely on LlamaConfig's default for it;
# every published Qwen3 config spells these keys out, so there they are required.
TARGET_FAMILIES: Mapping[str, TargetFamily] = {
    "LlamaForCausalLM": TargetFamily("llama", "llama", False, True, True, 10000.0),
    "Qwen3ForCausalLM": TargetFamily("qwen3", "qwen3", True, False, False, None),
}

_ONLY = (
    Only("hidden_act", ("silu",), "the MLP is built as SwiGLU."),
    Only("pretraining_tp", (1,), "sliced projections of tensor-parallel pretraining sum in another order."),
    Only("use_sliding_window", (False,), "sliding-window targets are not supported."),
    Only("compression_config", ({},), COMPRESSED),
    Only("num_experts", (0, 1), "mixture-of-experts targets are not supported."),
    Only("num_local_experts", (0, 1), "mixture-of-experts targets are not supported."),
    Only("final_logit_softcapping", (0, 0.0), "the logits are not capped."),
    Only("attn_logit_softcapping", (0, 0.0), "the attention scores are not capped."),
)


@dataclass(frozen=True)
class TargetConfig:
    """A dense decoder: `num_layers` of GQA attention and SwiGLU; `qk_norm` adds Qwen3's RMSNorm per head on q and k.

    `attention_bias` puts a bias on q, k, v and o; `mlp_bias` on gate, up and down. `windows`, by layer: a query sees
    only keys nearer than that; 0: all of them. `eos_token_ids` may be empty.
    """

    architecture: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    rope: RopeConfig
    max_position_embeddings: int
    tie_word_embeddings: bool
    attention_bias: bool
    mlp_bias: bool
    qk_norm: bool
    windows: tuple[int, ...]
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None

    @classmethod
    def from_hf(cls, config_json: dict[str, Any], generation_config: dict[str, Any] | None, where: str) -> TargetConfig:
        """Read config.json; stop tokens in generation_config.json replace config.json's, as in `generate`."""
        reader = HfReader(config_json, where)
        family = _family(reader)
        reader.check_only(_ONLY)
        _refuse_windowed_layers(reader)
        hidden_size = reader.read(int, "hidden_size", low=1, high=MAX_SIZE)
        num_q_heads = reader.read(int, "num_attention_heads", low=1, high=MAX_SIZE)
        head_dim = reader.read(int, "head_dim", default=None, low=2, high=MAX_SIZE)
        if head_dim is None and not family.head_dim_from_hidden:
            head_dim = reader.read(int, "head_dim")
        if head_dim is None:
            if hidden_size % num_q_heads:
                reader.fail(
                    "head_dim",
                    f"is missing, and hidden_size = {hidden_size} is no multiple of {num_q_heads} heads. Add it.",
                )
            head_dim = hidden_size // num_q_heads
        num_layers = reader.read(int, "num_hidden_layers", low=1, high=MAX_LAYERS)
        return cls(
            architecture=family.architecture,
            hidden_size=hidden_size,
            intermediate_size=reader.read(int, "intermediate_size", low=1, high=MAX_SIZE),
            num_layers=num_layers,
            num_q_heads=num_q_heads,
            num_kv_heads=read_kv_heads(reader, num_q_heads),
            head_dim=head_dim,
            vocab_size=reader.read(int, "vocab_size", low=2, high=MAX_SIZE),
            rms_norm_eps=reader.read(float, "rms_norm_eps", low=0.0, high=0.1),
            rope=RopeConfig.from_hf(reader, head_dim, default_theta=family.default_rope_theta),
            max_position_embeddings=reader.read(int, "max_position_embeddings", low=1),
            tie_word_embeddings=reader.read(bool, "tie_word_embeddings", default=False),
            attention_bias=reader.read(bool, "attention_bias", default=False),
            mlp_bias=family.mlp_bias and reader.read(bool, "mlp_bias", default=False),
            qk_norm=family.qk_norm,
            windows=(0,) * num_layers,
            eos_token_ids=_stop_tokens(reader, generation_config),
            bos_token_id=reader.read(int, "bos_token_id", default=None, low=0),
        )


def read_kv_heads(reader: HfReader, num_q_heads: int) -> int:
    """Read num_key_value_heads, which divides the query heads; missing means one per query head, as in HF configs."""
    num_kv_heads = reader.read(int, "num_key_value_heads", default=num_q_heads, low=1)
    if num_q_heads % num_kv_heads:
        reader.fail(
            "num_key_value_heads", f"is {num_kv_heads}, and does not divide num_attention_heads = {num_q_heads}."
        )
    return num_kv_heads


def _family(reader: HfReader) -> TargetFamily:
    names = reader.read_list(str, "architectures")
    family = TARGET_FAMILIES.get(names[0]) if len(names) == 1 else None
    if family is None:
        reader.fail("architectures", f"is {shown(names)}, and supported targets are {', '.join(TARGET_FAMILIES)}.")
    if reader.read(str, "model_type", default=family.model_type) != family.model_type:
        reader.fail(
            "model_type", f"is {shown(reader.get('model_type'))}, but {names[0]} goes with {family.model_type!r}."
        )
    return family


def _refuse_windowed_layers(reader: HfReader) -> None:
    for index, kind in enumerate(reader.read_list(str, "layer_types", default=())):
        if kind != "full_attention":
            reader.fail(f"layer_types[{index}]", f"is {shown(kind)}, and a target's layers can only be full_attention.")


def _stop_tokens(reader: HfReader, generation_config: dict[str, Any] | None) -> tuple[int, ...]:
    generation = HfReader(generation_config or {}, f"{reader.where} (generation_config.json)")
    holder = generation if generation.get("eos_token_id") is not None else reader
    ids = holder.read_list(int, "eos_token_id", default=(), scalar=True)
    for token in ids:
        if token < 0:
            holder.fail("eos_token_id", f"contains {token}, expected token ids.")
    return ids
