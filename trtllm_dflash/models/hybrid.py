"""Hybrid targets: most layers are gated delta nets, the others gated attention.

Qwen3-Next and Qwen3.5, dense and with experts, differ in a few tensors and keys of config.json.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from trtllm_dflash.models.base import NO_WINDOW_SWITCH, TargetFamily
from trtllm_dflash.models.decoder import (
    TARGET_LAYER,
    expert_specs,
    linear_specs,
    mlp_specs,
    swiglu_specs,
    target_table,
)
from trtllm_dflash.models.hf_config import MAX_SIZE, Allowed, HfReader
from trtllm_dflash.models.linear_attention import read_linear_layers
from trtllm_dflash.models.moe import MoEConfig, read_swiglu_experts
from trtllm_dflash.models.tensor_specs import IgnoredPrefix, TensorSpec, TensorTable

TEXT_PREFIX = "model.language_model."
_VISION = "only text is generated, so the encoder of images and videos is not built."
_MTP = "drafts come from the DFlash drafter, so the layers of multi-token prediction are not built."
IGNORED_PREFIXES = (
    IgnoredPrefix("model.visual.", _VISION),
    IgnoredPrefix("visual.", _VISION),
    IgnoredPrefix("mtp.", _MTP),
)
ALLOWED = (
    NO_WINDOW_SWITCH,
    Allowed("attention_bias", (False,), "no linear of these layers has a bias."),
    Allowed("mlp_bias", (False,), "no linear of these layers has a bias."),
    Allowed("attn_output_gate", (True,), "q_proj is built with a gate for each head."),
    Allowed("mamba_ssm_dtype", ("float32",), "recurrent states are kept in float32."),
    Allowed(
        "output_gate_type", ("swish", "silu"), "the norm of gated delta nets has that gate."
    ),
)
# With positions of text alone, the three rows of multimodal RoPE are the same: it is plain RoPE.
MROPE_KEYS = ("mrope_section", "mrope_interleaved")
_SIZES = "linear_attention"  # the field of TargetConfig that holds a LinearAttentionConfig


def read_windows(reader: HfReader, num_layers: int) -> tuple[int, ...]:
    """Return a window of 0 for each layer, of whichever type it is."""
    read_linear_layers(reader, num_layers)
    return (0,) * num_layers


def hybrid_family(
    architecture: str, model_type: str, *, allowed: tuple[Allowed, ...] = ALLOWED, **more: Any
) -> TargetFamily:
    """Return a hybrid family: `more` is what it does not share with the others."""
    return TargetFamily(
        architecture,
        model_type,
        read_windows=read_windows,
        allowed=allowed,
        attention_bias=False,
        qk_norm=True,
        default_partial_rotary_factor=0.25,
        ignored_rope_keys=MROPE_KEYS,
        gated_attention=True,
        norm_offset=1.0,
        **more,
    )


def hybrid_families(name: str, model_type: str, **more: Any) -> tuple[TargetFamily, ...]:
    """Return the family with images, of which text is built, and the one of text alone."""
    return (
        hybrid_family(
            f"{name}ForConditionalGeneration", model_type, text_in="text_config", **more
        ),
        hybrid_family(f"{name}ForCausalLM", f"{model_type}_text", **more),
    )


def hybrid_table(*, fused_projections: bool, experts: bool) -> TensorTable:
    """Return the table of a hybrid target, with experts or an MLP in every layer."""
    prefix = TARGET_LAYER
    mlp = mlp_specs(prefix)
    if experts:
        mlp = (*expert_specs(prefix), *_shared_expert_specs(prefix))
    table = target_table(
        TensorSpec(f"{prefix}input_layernorm.weight", ("hidden_size",)),
        *_delta_specs(f"{prefix}linear_attn.", fused_projections=fused_projections),
        *_attention_specs(f"{prefix}self_attn."),
        TensorSpec(f"{prefix}post_attention_layernorm.weight", ("hidden_size",)),
        *mlp,
    )
    return replace(table, ignored_prefixes=IGNORED_PREFIXES, stored_under=TEXT_PREFIX)


def read_experts_with_shared(reader: HfReader, *, normalize: bool) -> MoEConfig:
    """Read SwiGLU experts of every layer, and the one that every token uses."""
    shared = reader.read(int, "shared_expert_intermediate_size", low=1, high=MAX_SIZE)
    return read_swiglu_experts(reader, normalize=normalize, shared_intermediate_size=shared)


def _delta_specs(name: str, *, fused_projections: bool) -> tuple[TensorSpec, ...]:
    """List a gated delta net; see LinearAttentionConfig for its projections."""
    hidden = "hidden_size"
    heads = f"{_SIZES}.num_value_heads"
    channels = f"{_SIZES}.conv_size"
    value_size = f"{_SIZES}.value_size"
    projections = {
        "in_proj_qkv": channels,
        "in_proj_z": value_size,
        "in_proj_b": heads,
        "in_proj_a": heads,
    }
    if fused_projections:
        projections = {"in_proj_qkvz": f"{_SIZES}.qkvz_size", "in_proj_ba": f"2*{heads}"}
    specs = [
        *(linear_specs(f"{name}{part}", rows, hidden)[0] for part, rows in projections.items()),
        TensorSpec(f"{name}conv1d.weight", (channels, "1", f"{_SIZES}.conv_kernel")),
        TensorSpec(f"{name}A_log", (heads,)),
        TensorSpec(f"{name}dt_bias", (heads,)),
        TensorSpec(f"{name}norm.weight", (f"{_SIZES}.value_dim",)),
        *linear_specs(f"{name}out_proj", hidden, value_size),
    ]
    return tuple(replace(spec, when="is_linear") for spec in specs)


def _attention_specs(name: str) -> tuple[TensorSpec, ...]:
    """List gated attention: the rows of q_proj are by head a query, then its gate."""
    hidden = "hidden_size"
    kv_size = "num_kv_heads*head_dim"
    specs = (
        *linear_specs(f"{name}q_proj", "2*num_q_heads*head_dim", hidden),
        *linear_specs(f"{name}k_proj", kv_size, hidden),
        *linear_specs(f"{name}v_proj", kv_size, hidden),
        *linear_specs(f"{name}o_proj", hidden, "num_q_heads*head_dim"),
        TensorSpec(f"{name}q_norm.weight", ("head_dim",)),
        TensorSpec(f"{name}k_norm.weight", ("head_dim",)),
    )
    return tuple(replace(spec, unless="is_linear") for spec in specs)


def _shared_expert_specs(prefix: str) -> tuple[TensorSpec, ...]:
    """List the expert of a layer that every token uses, and its gate."""
    name = f"{prefix}mlp.shared_expert"
    return (
        *swiglu_specs(name, "moe.shared_intermediate_size"),
        TensorSpec(f"{name}_gate.weight", ("1", "hidden_size")),
    )
