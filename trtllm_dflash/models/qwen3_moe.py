"""Qwen3MoeForCausalLM: Qwen3's attention, and in every layer experts that are linears each."""

from __future__ import annotations

from trtllm_dflash.models.base import TargetFamily
from trtllm_dflash.models.decoder import (
    TARGET_LAYER,
    attention_specs,
    linear_specs,
    moe_layer,
    target_table,
)
from trtllm_dflash.models.hf_config import MAX_SIZE, HfReader, quote
from trtllm_dflash.models.moe import MoEConfig, read_expert_counts
from trtllm_dflash.models.tensor_specs import TensorSpec


def read_experts(reader: HfReader) -> MoEConfig:
    """Read plain SwiGLU experts in every layer; `norm_topk_prob` chooses the softmax."""
    num_experts, top_k = read_expert_counts(reader, "num_experts", "num_local_experts")
    every = "a layer without experts is not supported: all layers must have them."
    if reader.read(int, "decoder_sparse_step", default=1) != 1:
        step = quote(reader.get("decoder_sparse_step"))
        reader.fail("decoder_sparse_step", f"is {step}, and {every}")
    if reader.read_list(int, "mlp_only_layers", default=()):
        reader.fail(
            "mlp_only_layers", f"is {quote(reader.get('mlp_only_layers'))}, and {every}"
        )
    if reader.read(int, "shared_expert_intermediate_size", default=0):
        reader.fail(
            "shared_expert_intermediate_size",
            "is not 0, and an expert that every token uses is not built.",
        )
    return MoEConfig(
        num_experts=num_experts,
        top_k=top_k,
        intermediate_size=reader.read(int, "moe_intermediate_size", low=1, high=MAX_SIZE),
        normalize=reader.read(bool, "norm_topk_prob"),
        fused=False,
    )


def _expert_specs(mlp: str) -> tuple[TensorSpec, ...]:
    size = "moe.intermediate_size"
    hidden = "hidden_size"
    return (
        TensorSpec(f"{mlp}gate.weight", ("moe.num_experts", hidden)),
        *linear_specs(f"{mlp}experts.{{j}}.gate_proj", size, hidden),
        *linear_specs(f"{mlp}experts.{{j}}.up_proj", size, hidden),
        *linear_specs(f"{mlp}experts.{{j}}.down_proj", hidden, size),
    )


FAMILY = TargetFamily(
    "Qwen3MoeForCausalLM",
    "qwen3_moe",
    tensors=target_table(
        *attention_specs(TARGET_LAYER, qk_norm=True), *_expert_specs(f"{TARGET_LAYER}mlp.")
    ),
    layer=moe_layer,
    read_experts=read_experts,
    qk_norm=True,
)
