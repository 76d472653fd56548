"""Which tensors a checkpoint must have, as data: names as Hugging Face writes them, shapes as
configuration fields.

`{i}` runs over the layers, `{j}` over the experts of a layer. A size is a product of configuration
fields and numbers, as in "num_q_heads*head_dim" and "2*moe.intermediate_size". `when` and `unless`
name a field that decides whether the row applies. What is in neither table is an error: see
loader.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, TypeVar


@dataclass(frozen=True)
class TensorSpec:
    """One row: a tensor name, its symbolic shape, and the boolean configuration field under which
    it exists.

    A linear's weight is [out, in] and may be quantized; so are experts, [number, in, out]; no other
    tensor may.
    """

    name: str
    shape: tuple[str, ...]
    when: str | None = None
    unless: str | None = None
    is_linear: bool = False
    are_experts: bool = False

    @property
    def is_of_an_expert(self) -> bool:
        """Whether there is one for each expert of a layer."""
        return "{j}" in self.name

    def applies(self, config: Any) -> bool:
        """Tell whether the row exists under this configuration."""
        return (not self.when or bool(_value(config, self.when))) and not (
            self.unless and _value(config, self.unless)
        )


@dataclass(frozen=True, kw_only=True)
class IgnoredSpec(TensorSpec):
    """One row: a tensor that may be in the file and is not used, for this reason; an empty shape is
    not checked.
    """

    shape: tuple[str, ...] = ()
    reason: str


Row = TypeVar("Row", bound=TensorSpec)


@dataclass(frozen=True)
class TensorTable:
    """All rows of one kind of checkpoint."""

    used: tuple[TensorSpec, ...]
    ignored: tuple[IgnoredSpec, ...]


def _linear(name: str, rows: str, columns: str, bias_when: str) -> tuple[TensorSpec, TensorSpec]:
    weight = TensorSpec(f"{name}.weight", (rows, columns), is_linear=True)
    return weight, TensorSpec(f"{name}.bias", (rows,), when=bias_when)


def _decoder_layer(
    prefix: str, *, qk_norm_when: str | None, mlp_bias_when: str | None, mlp_unless: str | None
) -> tuple[TensorSpec, ...]:
    attention, mlp, q_size, kv_size = (
        f"{prefix}self_attn.",
        f"{prefix}mlp.",
        "num_q_heads*head_dim",
        "num_kv_heads*head_dim",
    )
    mlp_rows = (
        *_linear(f"{mlp}gate_proj", "intermediate_size", "hidden_size", "mlp_bias"),
        *_linear(f"{mlp}up_proj", "intermediate_size", "hidden_size", "mlp_bias"),
        *_linear(f"{mlp}down_proj", "hidden_size", "intermediate_size", "mlp_bias"),
    )
    return (
        TensorSpec(f"{prefix}input_layernorm.weight", ("hidden_size",)),
        *_linear(f"{attention}q_proj", q_size, "hidden_size", "attention_bias"),
        *_linear(f"{attention}k_proj", kv_size, "hidden_size", "attention_bias"),
        *_linear(f"{attention}v_proj", kv_size, "hidden_size", "attention_bias"),
        *_linear(f"{attention}o_proj", "hidden_size", q_size, "attention_bias"),
        TensorSpec(f"{attention}q_norm.weight", ("head_dim",), when=qk_norm_when),
        TensorSpec(f"{attention}k_norm.weight", ("head_dim",), when=qk_norm_when),
        TensorSpec(f"{prefix}post_attention_layernorm.weight", ("hidden_size",)),
        *(replace(row, unless=mlp_unless) for row in mlp_rows if mlp_bias_when or row.when is None),
    )


def _experts(mlp: str) -> tuple[TensorSpec, ...]:
    """Both layouts: as gpt-oss has it, one tensor of all experts, and as Qwen3-MoE has it,
    linears.
    """
    count, size, hidden = "moe.num_experts", "moe.intermediate_size", "hidden_size"
    fused = (
        TensorSpec(f"{mlp}router.weight", (count, hidden)),
        TensorSpec(f"{mlp}router.bias", (count,)),
        TensorSpec(f"{mlp}experts.gate_up_proj", (count, hidden, f"2*{size}"), are_experts=True),
        TensorSpec(f"{mlp}experts.gate_up_proj_bias", (count, f"2*{size}")),
        TensorSpec(f"{mlp}experts.down_proj", (count, size, hidden), are_experts=True),
        TensorSpec(f"{mlp}experts.down_proj_bias", (count, hidden)),
    )
    apart = (
        TensorSpec(f"{mlp}gate.weight", (count, hidden)),
        TensorSpec(f"{mlp}experts.{{j}}.gate_proj.weight", (size, hidden), is_linear=True),
        TensorSpec(f"{mlp}experts.{{j}}.up_proj.weight", (size, hidden), is_linear=True),
        TensorSpec(f"{mlp}experts.{{j}}.down_proj.weight", (hidden, size), is_linear=True),
    )
    return (
        *(replace(row, when="moe.fused") for row in fused),
        *(replace(row, when="moe", unless="moe.fused") for row in apart),
    )


_EMBEDDING = ("vocab_size", "hidden_size")
_INV_FREQ = "RoPE frequencies are recomputed from config.json; old exports stored this buffer."
_OWN_TABLE = (
    "a DFlash drafter embeds and decodes with the target's tables; ModelOpt releases store a copy."
)

TARGET_NAMES = TensorTable(
    used=(
        TensorSpec("model.embed_tokens.weight", _EMBEDDING),
        *_decoder_layer(
            "model.layers.{i}.", qk_norm_when="qk_norm", mlp_bias_when="mlp_bias", mlp_unless="moe"
        ),
        TensorSpec("model.layers.{i}.self_attn.sinks", ("num_q_heads",), when="sinks"),
        *_experts("model.layers.{i}.mlp."),
        TensorSpec("model.norm.weight", ("hidden_size",)),
        TensorSpec("lm_head.weight", _EMBEDDING, unless="tie_word_embeddings", is_linear=True),
    ),
    ignored=(
        IgnoredSpec("model.layers.{i}.self_attn.rotary_emb.inv_freq", reason=_INV_FREQ),
        IgnoredSpec("model.rotary_emb.inv_freq", reason=_INV_FREQ),
        IgnoredSpec(
            "lm_head.weight",
            shape=_EMBEDDING,
            when="tie_word_embeddings",
            reason=(
                "the head is tied: it is model.embed_tokens.weight, of which this is an identical"
                " copy."
            ),
        ),
    ),
)

DRAFTER_NAMES = TensorTable(
    used=(
        TensorSpec("fc.weight", ("hidden_size", "num_taps*hidden_size"), is_linear=True),
        TensorSpec("hidden_norm.weight", ("hidden_size",)),
        *_decoder_layer("layers.{i}.", qk_norm_when=None, mlp_bias_when=None, mlp_unless=None),
        TensorSpec("norm.weight", ("hidden_size",)),
    ),
    ignored=(
        IgnoredSpec("embed_tokens.weight", shape=_EMBEDDING, reason=_OWN_TABLE),
        IgnoredSpec("lm_head.weight", shape=_EMBEDDING, reason=_OWN_TABLE),
        IgnoredSpec("layers.{i}.self_attn.rotary_emb.inv_freq", reason=_INV_FREQ),
        IgnoredSpec("rotary_emb.inv_freq", reason=_INV_FREQ),
    ),
)

# Where a drafter's stored copy must equal the target's tensor (the target's head may be its
# embedding).
SHARED_TABLES = {
    "embed_tokens.weight": "model.embed_tokens.weight",
    "lm_head.weight": "lm_head.weight",
}


def expand_specs(rows: Iterable[Row], config: Any) -> dict[str, Row]:
    """Return the rows that apply by tensor name, each layer's and expert's spelled out."""
    return {
        row.name.replace("{i}", str(layer)).replace("{j}", str(expert)): row
        for row in rows
        if row.applies(config)
        for layer in range(config.num_layers if "{i}" in row.name else 1)
        for expert in range(config.moe.num_experts if row.is_of_an_expert else 1)
    }


def resolve_shape(row: TensorSpec, config: Any) -> list[int]:
    """Evaluate a row's symbolic shape."""
    return [math.prod(_size(config, factor) for factor in size.split("*")) for size in row.shape]


def _size(config: Any, factor: str) -> int:
    return int(factor) if factor.isdigit() else int(_value(config, factor))


def _value(config: Any, path: str) -> Any:
    """The field under a dotted path; None where a part of the configuration is absent."""
    for name in path.split("."):
        config = None if config is None else getattr(config, name)
    return config
