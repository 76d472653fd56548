"""The target LLM's configuration, read once from Hugging Face's config.json and frozen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from trtllm_dflash.checkpoint.formats import COMPRESSED
from trtllm_dflash.models.hf_config import MAX_SIZE, Allowed, HfReader, quote
from trtllm_dflash.models.moe import MoEConfig, read_gpt_oss_experts, read_qwen3_moe_experts
from trtllm_dflash.models.rope import RopeConfig

# Like MAX_SIZE, and for tables of names.
MAX_LAYERS = 1024
MAX_EXPERTS_IN_ALL = 1 << 15  # with tensors of their own


@dataclass(frozen=True)
class TargetFamily:
    """What one Hugging Face architecture implies, and what its config class fills in where a key is
    missing.
    """

    model_type: str
    qk_norm: bool = False
    mlp_bias: bool = False  # whether the MLP may have one
    attention_bias: bool = False  # where the key is missing
    head_dim_from_hidden: bool = False
    default_rope_theta: float | None = None
    experts: Callable[[HfReader], MoEConfig] | None = None
    windows_and_sinks: bool = False


# Hugging Face architecture name -> family. Llama configs older than a key rely on LlamaConfig's
# default for it; every published config of the others spells these keys out, so there they are
# required.
TARGET_FAMILIES: Mapping[str, TargetFamily] = {
    "LlamaForCausalLM": TargetFamily(
        "llama", mlp_bias=True, head_dim_from_hidden=True, default_rope_theta=10000.0
    ),
    "Qwen3ForCausalLM": TargetFamily("qwen3", qk_norm=True),
    "Qwen3MoeForCausalLM": TargetFamily("qwen3_moe", qk_norm=True, experts=read_qwen3_moe_experts),
    "GptOssForCausalLM": TargetFamily(
        "gpt_oss", attention_bias=True, experts=read_gpt_oss_experts, windows_and_sinks=True
    ),
}

_ALLOWED = (
    Allowed("hidden_act", ("silu",), "the MLP is built as SwiGLU."),
    Allowed(
        "pretraining_tp",
        (1,),
        "sliced projections of tensor-parallel pretraining sum in another order.",
    ),
    Allowed(
        "use_sliding_window",
        (False,),
        "which layers slide is in layer_types, and only gpt-oss has such targets.",
    ),
    Allowed("compression_config", ({},), COMPRESSED),
    Allowed("final_logit_softcapping", (0, 0.0), "the logits are not capped."),
    Allowed("attn_logit_softcapping", (0, 0.0), "the attention scores are not capped."),
)
_ALLOWED_DENSE = tuple(
    Allowed(name, (0, 1), "only Qwen3MoeForCausalLM and GptOssForCausalLM have experts here.")
    for name in ("num_experts", "num_local_experts")
)


@dataclass(frozen=True)
class TargetConfig:
    """A decoder: `num_layers` of GQA attention and SwiGLU, or of experts where there is a `moe`.

    `qk_norm` adds Qwen3's RMSNorm per head on q and k. `attention_bias` puts a bias on q, k, v and
    o; `mlp_bias` on gate, up and down. `windows`: how far back each layer sees, its own token
    counted; 0 is everything. `sinks`: each query head has a learned logit that takes weight and
    gives nothing. `eos_token_ids` may be empty.
    """

    model_type: str
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
    sinks: bool
    moe: MoEConfig | None
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None

    @classmethod
    def from_hf(
        cls, config_json: dict[str, Any], generation_config: dict[str, Any] | None, where: str
    ) -> TargetConfig:
        """Read config.json; stop tokens in generation_config.json replace config.json's, as in
        `generate`.
        """
        reader = HfReader(config_json, where)
        family = _family(reader)
        reader.check_allowed(_ALLOWED if family.experts else (*_ALLOWED, *_ALLOWED_DENSE))
        num_layers = reader.read(int, "num_hidden_layers", low=1, high=MAX_LAYERS)
        hidden_size = reader.read(int, "hidden_size", low=1, high=MAX_SIZE)
        num_q_heads = reader.read(int, "num_attention_heads", low=1, high=MAX_SIZE)
        head_dim = reader.read(int, "head_dim", default=None, low=2, high=MAX_SIZE)
        if head_dim is None and not family.head_dim_from_hidden:
            head_dim = reader.read(int, "head_dim")
        if head_dim is None:
            if hidden_size % num_q_heads:
                reader.fail(
                    "head_dim",
                    f"is missing, and hidden_size = {hidden_size} is no multiple of {num_q_heads}"
                    " heads. Add it.",
                )
            head_dim = hidden_size // num_q_heads
        num_layers = reader.read(int, "num_hidden_layers", low=1, high=MAX_LAYERS)
        return cls(
            model_type=family.model_type,
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
            attention_bias=reader.read(bool, "attention_bias", default=family.attention_bias),
            mlp_bias=family.mlp_bias and reader.read(bool, "mlp_bias", default=False),
            qk_norm=family.qk_norm,
            windows=_read_windows(reader, num_layers, family),
            sinks=family.windows_and_sinks,
            moe=_read_experts(reader, num_layers, family),
            eos_token_ids=_stop_tokens(reader, generation_config),
            bos_token_id=reader.read(int, "bos_token_id", default=None, low=0),
        )


def read_kv_heads(reader: HfReader, num_q_heads: int) -> int:
    """Read num_key_value_heads, which divides the query heads; missing means one per query head, as
    in HF configs.
    """
    num_kv_heads = reader.read(int, "num_key_value_heads", default=num_q_heads, low=1)
    if num_q_heads % num_kv_heads:
        reader.fail(
            "num_key_value_heads",
            f"is {num_kv_heads}, and does not divide num_attention_heads = {num_q_heads}.",
        )
    return num_kv_heads


def _family(reader: HfReader) -> TargetFamily:
    names = reader.read_list(str, "architectures")
    family = TARGET_FAMILIES.get(names[0]) if len(names) == 1 else None
    if family is None:
        reader.fail(
            "architectures",
            f"is {quote(names)}, and supported targets are {', '.join(TARGET_FAMILIES)}.",
        )
    if reader.read(str, "model_type", default=family.model_type) != family.model_type:
        reader.fail(
            "model_type",
            f"is {quote(reader.get('model_type'))}, but {names[0]} goes with"
            f" {family.model_type!r}.",
        )
    return family


def _read_experts(reader: HfReader, num_layers: int, family: TargetFamily) -> MoEConfig | None:
    moe = family.experts(reader) if family.experts else None
    if moe and not moe.fused and num_layers * moe.num_experts > MAX_EXPERTS_IN_ALL:
        sizes = f"{moe.num_experts} in each of {num_layers} layers"
        reader.fail("num_experts", f"is {sizes}, expected at most {MAX_EXPERTS_IN_ALL} in all.")
    return moe


def _read_windows(reader: HfReader, num_layers: int, family: TargetFamily) -> tuple[int, ...]:
    """The window of each layer, 0 for full attention."""
    full, sliding = "full_attention", "sliding_attention"
    allowed = (full, sliding) if family.windows_and_sinks else (full,)
    if family.windows_and_sinks:
        kinds = reader.read_list(str, "layer_types")
    else:
        kinds = reader.read_list(str, "layer_types", default=(full,) * num_layers)
    for index, kind in enumerate(kinds):
        if kind not in allowed:
            problem = (
                f"is {quote(kind)}, and a layer of {family.model_type} can only be"
                f" {' or '.join(allowed)}."
            )
            reader.fail(f"layer_types[{index}]", problem)
    if len(kinds) != num_layers:
        reader.fail(
            "layer_types", f"has {len(kinds)} entries, expected num_hidden_layers = {num_layers}."
        )
    window = reader.read(int, "sliding_window", low=1) if sliding in kinds else 0
    return tuple(window if kind == sliding else 0 for kind in kinds)


def _stop_tokens(reader: HfReader, generation_config: dict[str, Any] | None) -> tuple[int, ...]:
    generation = HfReader(generation_config or {}, f"{reader.where} (generation_config.json)")
    holder = generation if generation.get("eos_token_id") is not None else reader
    ids = holder.read_list(int, "eos_token_id", default=(), scalar=True)
    for token in ids:
        if token < 0:
            holder.fail("eos_token_id", f"contains {token}, expected token ids.")
    return ids
