"""A mixture of experts in the place of a layer's MLP: how many, how many a token uses, and what an
expert computes.
"""

from __future__ import annotations

from dataclasses import dataclass

from trtllm_dflash.models.hf_config import MAX_SIZE, HfReader, quote

MAX_EXPERTS = 1024


@dataclass(frozen=True)
class MoEConfig:
    """Experts of every layer, each a gated MLP of `intermediate_size`, of which a token uses
    `top_k`.

    An expert is down · ((up + shift) · gate · sigmoid(alpha · gate)), gate cut above `limit` and up
    beyond ±limit (0: neither). Its share is the softmax of the router's logits, over the chosen
    experts if `normalize`, else over all. `fused`: all experts of a layer are one tensor with the
    rows of gate and up taking turns, and they and the router have biases, as gpt-oss has it;
    otherwise they have none, and each expert's three linears are tensors of their own.
    """

    num_experts: int
    top_k: int
    intermediate_size: int
    normalize: bool
    fused: bool
    limit: float = 0.0
    alpha: float = 1.0
    shift: float = 0.0


def read_gpt_oss_experts(reader: HfReader) -> MoEConfig:
    """gpt-oss: the softmax is over the chosen experts; a clamped SwiGLU with a slope of its own."""
    num_experts, top_k = _counts(reader, "num_local_experts", "num_experts")
    limit = reader.read(float, "swiglu_limit", default=7.0)
    if limit <= 0:
        reader.fail("swiglu_limit", f"is {limit}, expected more than 0: gates are cut above it.")
    return MoEConfig(
        num_experts=num_experts,
        top_k=top_k,
        intermediate_size=reader.read(int, "intermediate_size", low=1, high=MAX_SIZE),
        normalize=True,
        fused=True,
        limit=limit,
        alpha=reader.read(float, "swiglu_alpha", default=1.702),
        shift=1.0,
    )


def read_qwen3_moe_experts(reader: HfReader) -> MoEConfig:
    """Qwen3-MoE: plain SwiGLU experts in every layer; `norm_topk_prob` says whose softmax it is."""
    num_experts, top_k = _counts(reader, "num_experts", "num_local_experts")
    every = "a layer without experts is not supported: all layers must have them."
    if reader.read(int, "decoder_sparse_step", default=1) != 1:
        reader.fail(
            "decoder_sparse_step", f"is {quote(reader.get('decoder_sparse_step'))}, and {every}"
        )
    if reader.read_list(int, "mlp_only_layers", default=()):
        reader.fail("mlp_only_layers", f"is {quote(reader.get('mlp_only_layers'))}, and {every}")
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


def _counts(reader: HfReader, *names: str) -> tuple[int, int]:
    num_experts = reader.read(int, *names, low=2, high=MAX_EXPERTS)
    return num_experts, reader.read(
        int, "num_experts_per_tok", "experts_per_token", low=1, high=num_experts
    )
