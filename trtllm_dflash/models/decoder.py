"""What most decoders share: the tensors of attention and MLP, and the layers that use them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from trtllm_dflash.models.tensor_specs import IgnoredSpec, TensorSpec, TensorTable

if TYPE_CHECKING:
    import onnx_ir as ir

TARGET_LAYER = "model.layers.{i}."
EMBEDDING_SHAPE = ("vocab_size", "hidden_size")
ROPE_BUFFER = (
    "RoPE frequencies are recomputed from config.json; old exports stored this buffer."
)
_TIED_HEAD = (
    "the head is tied: it is model.embed_tokens.weight, of which this is an identical copy."
)


class LayerOps(Protocol):
    """The operations of one target that a decoder layer is built from.

    Values are [B·S, hidden]; names are those of the checkpoint's modules.
    """

    def scope(self, name: str) -> AbstractContextManager[None]:
        """Put the nodes built inside under `name`."""

    def add(self, x: ir.Value, y: ir.Value) -> ir.Value:
        """Return x + y."""

    def rms_norm(self, x: ir.Value, name: str) -> ir.Value:
        """Return the norm `name` of x."""

    def attention(self, x: ir.Value, layer: int, name: str) -> ir.Value:
        """Return the self-attention `name` of x over the layer's cache."""

    def is_linear(self, layer: int) -> bool:
        """Tell whether a layer is a gated delta net."""

    def linear_attention(self, x: ir.Value, layer: int, name: str) -> ir.Value:
        """Return the gated delta net `name` of x over the layer's state."""

    def swiglu(self, x: ir.Value, name: str) -> ir.Value:
        """Return the gated MLP `name` of x."""

    def experts(self, x: ir.Value, name: str) -> ir.Value:
        """Return the mixture of experts `name` of x."""

    def shared_expert(self, x: ir.Value, name: str) -> ir.Value:
        """Return the expert of `name` that every token uses, times the sigmoid of its gate."""


def dense_layer(ops: LayerOps, x: ir.Value, index: int) -> ir.Value:
    """Build decoder layer `index` of the residual stream x [B·S, hidden], with a gated MLP."""
    name = f"model.layers.{index}"
    with ops.scope(f"layers.{index}"):
        x, normed = _attend(ops, x, index, name)
        return ops.add(x, ops.swiglu(normed, f"{name}.mlp"))


def moe_layer(ops: LayerOps, x: ir.Value, index: int) -> ir.Value:
    """Build decoder layer `index` of the residual stream x [B·S, hidden], with experts."""
    name = f"model.layers.{index}"
    with ops.scope(f"layers.{index}"):
        x, normed = _attend(ops, x, index, name)
        return ops.add(x, ops.experts(normed, f"{name}.mlp"))


def shared_moe_layer(ops: LayerOps, x: ir.Value, index: int) -> ir.Value:
    """Build decoder layer `index` of x [B·S, hidden], with experts, one of which all tokens use."""
    name = f"model.layers.{index}"
    with ops.scope(f"layers.{index}"):
        x, normed = _attend(ops, x, index, name)
        chosen = ops.experts(normed, f"{name}.mlp")
        return ops.add(x, ops.add(chosen, ops.shared_expert(normed, f"{name}.mlp")))


def _attend(ops: LayerOps, x: ir.Value, index: int, name: str) -> tuple[ir.Value, ir.Value]:
    """Add attention to the stream, full or linear; return it, and its norm for what follows."""
    normed = ops.rms_norm(x, f"{name}.input_layernorm")
    if ops.is_linear(index):
        mixed = ops.linear_attention(normed, index, f"{name}.linear_attn")
    else:
        mixed = ops.attention(normed, index, f"{name}.self_attn")
    x = ops.add(x, mixed)
    return x, ops.rms_norm(x, f"{name}.post_attention_layernorm")


def linear_specs(
    name: str, rows: str, columns: str, bias_when: str | None = None
) -> tuple[TensorSpec, ...]:
    """List the weight [rows, columns] of the linear `name`, and its bias where it may have one."""
    weight = TensorSpec(f"{name}.weight", (rows, columns), is_linear=True)
    if bias_when is None:
        return (weight,)
    return weight, TensorSpec(f"{name}.bias", (rows,), when=bias_when)


def attention_specs(
    prefix: str, *, o_bias: bool = True, qk_norm: bool = False
) -> tuple[TensorSpec, ...]:
    """List both norms of a layer and its attention; `attention_bias` puts biases on q, k, v, o.

    Without `o_bias` o never has one.
    """
    attention = f"{prefix}self_attn."
    bias = "attention_bias"
    q_size = "num_q_heads*head_dim"
    kv_size = "num_kv_heads*head_dim"
    hidden = "hidden_size"
    norms = ("q_norm", "k_norm") if qk_norm else ()
    return (
        TensorSpec(f"{prefix}input_layernorm.weight", (hidden,)),
        *linear_specs(f"{attention}q_proj", q_size, hidden, bias),
        *linear_specs(f"{attention}k_proj", kv_size, hidden, bias),
        *linear_specs(f"{attention}v_proj", kv_size, hidden, bias),
        *linear_specs(f"{attention}o_proj", hidden, q_size, bias if o_bias else None),
        *(TensorSpec(f"{attention}{norm}.weight", ("head_dim",)) for norm in norms),
        TensorSpec(f"{prefix}post_attention_layernorm.weight", (hidden,)),
    )


def mlp_specs(prefix: str, *, bias_when: str | None = None) -> tuple[TensorSpec, ...]:
    """List a layer's gated MLP."""
    return swiglu_specs(f"{prefix}mlp", "intermediate_size", bias_when=bias_when)


def expert_specs(prefix: str) -> tuple[TensorSpec, ...]:
    """List a layer's router, and the linears of each of its experts."""
    mlp = f"{prefix}mlp"
    return (
        TensorSpec(f"{mlp}.gate.weight", ("moe.num_experts", "hidden_size")),
        *swiglu_specs(f"{mlp}.experts.{{j}}", "moe.intermediate_size"),
    )


def swiglu_specs(
    name: str, size: str, *, bias_when: str | None = None
) -> tuple[TensorSpec, ...]:
    """List the three linears of the gated MLP `name`, of which `size` is the inner size."""
    hidden = "hidden_size"
    return (
        *linear_specs(f"{name}.gate_proj", size, hidden, bias_when),
        *linear_specs(f"{name}.up_proj", size, hidden, bias_when),
        *linear_specs(f"{name}.down_proj", hidden, size, bias_when),
    )


def target_table(*layer_specs: TensorSpec) -> TensorTable:
    """Return the table of a target: embedding, layers, final norm and head."""
    head = TensorSpec("lm_head.weight", EMBEDDING_SHAPE, is_linear=True)
    tied = "tie_word_embeddings"
    return TensorTable(
        used=(
            TensorSpec("model.embed_tokens.weight", EMBEDDING_SHAPE),
            *layer_specs,
            TensorSpec("model.norm.weight", ("hidden_size",)),
            replace(head, unless=tied),
        ),
        ignored=(
            IgnoredSpec(f"{TARGET_LAYER}self_attn.rotary_emb.inv_freq", reason=ROPE_BUFFER),
            IgnoredSpec("model.rotary_emb.inv_freq", reason=ROPE_BUFFER),
            IgnoredSpec("lm_head.weight", shape=EMBEDDING_SHAPE, when=tied, reason=_TIED_HEAD),
        ),
    )
