"""The target's configuration, read once from config.json, and what an architecture adds to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from trtllm_dflash.models.context import ContextLimit
from trtllm_dflash.models.decoder import LayerOps
from trtllm_dflash.models.hf_config import MAX_SIZE, Allowed, HfReader
from trtllm_dflash.models.linear_attention import LinearAttentionConfig, read_linear_layers
from trtllm_dflash.models.moe import MoEConfig
from trtllm_dflash.models.rope import RopeConfig
from trtllm_dflash.models.tensor_specs import TensorTable
from trtllm_dflash.models.windows import no_windows

if TYPE_CHECKING:
    import onnx_ir as ir

# Bounds as MAX_SIZE, for tables of names.
MAX_LAYERS = 1024
MAX_EXPERTS_IN_ALL = 1 << 15  # with tensors of their own

REQUANTIZE = "Quantize the BF16 original: `dflash-trt quantize --quant fp8` (or nvfp4)."

_ALLOWED = (
    Allowed("hidden_act", ("silu", "swish"), "the MLP is built as SwiGLU."),
    Allowed(
        "is_causal",
        (True,),
        "this target would see the tokens behind each position, and those are not known while"
        " it generates.",
    ),
    Allowed("is_encoder_decoder", (False,), "only decoders are built."),
    Allowed("per_layer_config", ({}, []), "every layer is built with the same sizes."),
    Allowed(
        "pretraining_tp",
        (1,),
        "sliced projections of tensor-parallel pretraining sum in another order.",
    ),
    Allowed("final_logit_softcapping", (0, 0.0), "the logits are not capped."),
    Allowed("attn_logit_softcapping", (0, 0.0), "the attention scores are not capped."),
)
NO_WINDOW_SWITCH = Allowed(
    "use_sliding_window",
    (False,),
    "which layers slide is in layer_types, and only gpt-oss has such targets.",
)


@dataclass(frozen=True)
class TargetFamily:
    """One Hugging Face architecture: its tensors, its layer, and what its config.json implies.

    architecture         Hugging Face's class, as in config.json's `architectures`
    model_type           as in config.json
    tensors              the tensors of its checkpoints
    layer                `layer(ops, x, index)` builds a decoder layer
    read_windows         reads each layer's window from config.json
    read_experts         reads the mixture of experts; None: the MLP is dense
    allowed              keys that may be missing but have no other values than these
    defaults             what its config class fills in where a key is missing
    attention_bias       whether q, k and v have biases; None: as the key says
    reads_mlp_bias       whether the key mlp_bias counts
    qk_norm              a norm on every query and key head
    sinks                attention sinks
    head_dim_from_hidden hidden_size / num_attention_heads where head_dim is missing
    default_rope_theta   where the key is missing; None: it is required
    default_partial_rotary_factor  where the key is missing; None: the whole head is rotated
    ignored_rope_keys    parameters of RoPE that change nothing here
    read_linear_attention  reads the sizes of gated delta nets; None: every layer has attention
    gated_attention      q_proj also gives a gate for what attention returns
    norm_offset          what is added to the weights of norms, in float32
    text_in              the section of config.json with the decoder's keys; "": the top level
    """

    architecture: str
    model_type: str
    tensors: TensorTable
    layer: Callable[[LayerOps, ir.Value, int], ir.Value]
    read_windows: Callable[[HfReader, int], tuple[int, ...]] = no_windows
    read_experts: Callable[[HfReader], MoEConfig] | None = None
    allowed: tuple[Allowed, ...] = (NO_WINDOW_SWITCH,)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    attention_bias: bool | None = None
    reads_mlp_bias: bool = False
    qk_norm: bool = False
    sinks: bool = False
    head_dim_from_hidden: bool = False
    default_rope_theta: float | None = None
    default_partial_rotary_factor: float | None = None
    ignored_rope_keys: tuple[str, ...] = ()
    read_linear_attention: Callable[[HfReader], LinearAttentionConfig] | None = None
    gated_attention: bool = False
    norm_offset: float = 0.0
    text_in: str = ""


@dataclass(frozen=True)
class TargetConfig:
    """A decoder: `num_layers` of GQA attention and SwiGLU, or of experts where there is a `moe`.

    `qk_norm` adds an RMSNorm per head on q and k. `attention_bias` puts biases on q, k and v, and
    on o where the family has one; `mlp_bias` on gate, up and down. `windows`: how far back each
    layer sees, its own token counted; 0 is everything. `sinks`: one learned logit per query head is
    added to the softmax denominator. `eos_token_ids` may be empty. `by_layer` holds the values of
    fields that differ by layer; the fields themselves then have one of these values.

    A layer that `is_linear` is a gated delta net of `linear_attention`'s sizes in the place of
    attention. `gated_attention`: q_proj has for each head a query, then a gate whose sigmoid
    multiplies what attention returns. `norm_offset` is added to the weight of every norm, in
    float32, but to that inside of gated delta nets. `intermediate_size` may be 0 with experts.
    """

    family: TargetFamily = field(repr=False)
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
    by_layer: Mapping[str, tuple[Any, ...]] = field(default_factory=dict, hash=False)
    linear_attention: LinearAttentionConfig | None = None
    is_linear: bool = False
    gated_attention: bool = False
    norm_offset: float = 0.0

    @property
    def kv_layers(self) -> tuple[int, ...]:
        """Return the indices of the layers that have keys and values."""
        return tuple(i for i, is_linear in enumerate(self.linear_layers) if not is_linear)

    @property
    def model_type(self) -> str:
        """Return the family's `model_type`."""
        return self.family.model_type

    @property
    def tensors(self) -> TensorTable:
        """Return the table of the family's tensors."""
        return self.family.tensors

    @property
    def context_limit(self) -> ContextLimit:
        """Return how many positions a sequence may have, RoPE scaling included, and why."""
        return self.rope.context_limit(self.max_position_embeddings)

    @property
    def longest_context(self) -> int:
        """Return how many positions a sequence may have, RoPE scaling included."""
        return self.context_limit.tokens

    @property
    def linear_layers(self) -> tuple[bool, ...]:
        """Return for each layer whether it is a gated delta net."""
        return self.by_layer.get("is_linear", (self.is_linear,) * self.num_layers)

    @property
    def has_linear_layers(self) -> bool:
        """Return whether any layer is a gated delta net."""
        return any(self.linear_layers)

    @property
    def odd_tied_tables(self) -> tuple[str, ...]:
        """Return the table that is embedding and head, if it has an odd number of rows.

        TensorRT-RTX 1.7.1 stores such a table twice, so a GPU engine's has one row more.
        """
        is_odd = self.tie_word_embeddings and self.vocab_size % 2 == 1
        return ("model.embed_tokens.weight",) if is_odd else ()

    def at_layer(self, index: int) -> TargetConfig:
        """Return the configuration as layer `index` sees it."""
        if not self.by_layer:
            return self
        values = {name: values[index] for name, values in self.by_layer.items()}
        return replace(self, by_layer={}, **values)

    @classmethod
    def from_hf(
        cls, reader: HfReader, family: TargetFamily, generation_config: dict[str, Any] | None
    ) -> TargetConfig:
        """Read config.json as one of `family`; see `registry.read_target_config`."""
        reader.check_allowed((*_ALLOWED, *family.allowed))
        if reader.data.get("is_causal", True) is None:
            reader.fail("is_causal", "is null, which Hugging Face reads as false. Remove it.")
        num_layers = reader.read(int, "num_hidden_layers", low=1, high=MAX_LAYERS)
        hidden_size = reader.read(int, "hidden_size", low=1, high=MAX_SIZE)
        num_q_heads = reader.read(int, "num_attention_heads", low=1, high=MAX_SIZE)
        head_dim = _read_head_dim(reader, family, hidden_size, num_q_heads)
        attention_bias = family.attention_bias
        if attention_bias is None:
            attention_bias = reader.read(bool, "attention_bias", default=False)
        moe = _read_experts(reader, num_layers, family)
        return cls(
            family=family,
            hidden_size=hidden_size,
            intermediate_size=_read_intermediate_size(reader, moe),
            num_layers=num_layers,
            num_q_heads=num_q_heads,
            num_kv_heads=read_kv_heads(reader, num_q_heads),
            head_dim=head_dim,
            vocab_size=reader.read(int, "vocab_size", low=2, high=MAX_SIZE),
            rms_norm_eps=reader.read(float, "rms_norm_eps", low=0.0, high=0.1),
            rope=RopeConfig.from_hf(
                reader,
                head_dim,
                default_theta=family.default_rope_theta,
                default_partial_factor=family.default_partial_rotary_factor,
                ignored=family.ignored_rope_keys,
            ),
            max_position_embeddings=reader.read(int, "max_position_embeddings", low=1),
            tie_word_embeddings=reader.read(bool, "tie_word_embeddings", default=False),
            attention_bias=attention_bias,
            mlp_bias=family.reads_mlp_bias and reader.read(bool, "mlp_bias", default=False),
            qk_norm=family.qk_norm,
            windows=family.read_windows(reader, num_layers),
            sinks=family.sinks,
            moe=moe,
            eos_token_ids=_read_stop_tokens(reader, generation_config),
            bos_token_id=reader.read(int, "bos_token_id", default=None, low=0),
            gated_attention=family.gated_attention,
            norm_offset=family.norm_offset,
            **_read_linear(reader, num_layers, family),
        )


def read_kv_heads(reader: HfReader, num_q_heads: int) -> int:
    """Read num_key_value_heads, which divides the query heads.

    Missing means one per query head, as in Hugging Face's configs.
    """
    num_kv_heads = reader.read(int, "num_key_value_heads", default=num_q_heads, low=1)
    if num_q_heads % num_kv_heads:
        problem = f"is {num_kv_heads}, and does not divide num_attention_heads = {num_q_heads}."
        reader.fail("num_key_value_heads", problem)
    return num_kv_heads


def _read_head_dim(
    reader: HfReader, family: TargetFamily, hidden_size: int, num_q_heads: int
) -> int:
    if not family.head_dim_from_hidden:
        return reader.read(int, "head_dim", low=2, high=MAX_SIZE)
    head_dim = reader.read(int, "head_dim", default=None, low=2, high=MAX_SIZE)
    if head_dim is not None:
        return head_dim
    if hidden_size % num_q_heads:
        sizes = f"hidden_size = {hidden_size} is no multiple of {num_q_heads} heads"
        reader.fail("head_dim", f"is missing, and {sizes}. Add it.")
    return hidden_size // num_q_heads


def _read_experts(reader: HfReader, num_layers: int, family: TargetFamily) -> MoEConfig | None:
    moe = family.read_experts(reader) if family.read_experts else None
    if moe and not moe.fused and num_layers * moe.num_experts > MAX_EXPERTS_IN_ALL:
        sizes = f"{moe.num_experts} in each of {num_layers} layers"
        reader.fail("num_experts", f"is {sizes}, expected at most {MAX_EXPERTS_IN_ALL} in all.")
    return moe


def _read_intermediate_size(reader: HfReader, moe: MoEConfig | None) -> int:
    """Read the size of the MLP; 0 where every layer has experts and the key is missing."""
    if moe is None:
        return reader.read(int, "intermediate_size", low=1, high=MAX_SIZE)
    return reader.read(int, "intermediate_size", default=0, low=1, high=MAX_SIZE)


def _read_linear(reader: HfReader, num_layers: int, family: TargetFamily) -> dict[str, Any]:
    """Return the fields of linear attention; none if no layer is linear."""
    if family.read_linear_attention is None:
        return {}
    layers = read_linear_layers(reader, num_layers)
    sizes = family.read_linear_attention(reader)
    if not any(layers):
        return {}
    return {"linear_attention": sizes, "by_layer": {"is_linear": layers}}


def _read_stop_tokens(
    reader: HfReader, generation_config: dict[str, Any] | None
) -> tuple[int, ...]:
    generation = HfReader(generation_config or {}, f"{reader.where} (generation_config.json)")
    holder = generation if generation.get("eos_token_id") is not None else reader
    ids = holder.read_list(int, "eos_token_id", default=(), scalar=True)
    for token in ids:
        if token < 0:
            holder.fail("eos_token_id", f"contains {token}, expected token ids.")
    return ids
