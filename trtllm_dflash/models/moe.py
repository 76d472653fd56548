"""A mixture of experts in the place of a layer's MLP."""

from __future__ import annotations

from dataclasses import dataclass

from trtllm_dflash.models.hf_config import MAX_SIZE, HfReader, quote

MAX_EXPERTS = 1024


@dataclass(frozen=True)
class MoEConfig:
    """Experts of every layer, each a gated MLP of `intermediate_size`; a token uses `top_k`.

    An expert is down · ((up + shift) · gate · sigmoid(alpha · gate)). Gate is cut above `limit`, up
    beyond ±limit (0: neither). Its share is the softmax of the router's logits: over the chosen
    experts if `normalize`, else over all. `fused`, as in gpt-oss: all experts of a layer are one
    tensor, in which the rows of gate and up alternate. They and the router then have biases.
    Otherwise there are no biases, and each expert's three linears are tensors of their own.
    Every token also uses a shared expert of `shared_intermediate_size` (0: there is none), times
    the sigmoid of a gate.
    """

    num_experts: int
    top_k: int
    intermediate_size: int
    normalize: bool
    fused: bool
    limit: float = 0.0
    alpha: float = 1.0
    shift: float = 0.0
    shared_intermediate_size: int = 0


def read_expert_counts(reader: HfReader, *names: str) -> tuple[int, int]:
    """Read how many experts a layer has, under one of `names`, and how many a token uses."""
    num_experts = reader.read(int, *names, low=2, high=MAX_EXPERTS)
    top_k = reader.read(
        int, "num_experts_per_tok", "experts_per_token", low=1, high=num_experts
    )
    return num_experts, top_k


def read_swiglu_experts(
    reader: HfReader, *, normalize: bool, shared_intermediate_size: int = 0
) -> MoEConfig:
    """Read SwiGLU experts, of which each has tensors of its own, as Qwen's keys name them."""
    num_experts, top_k = read_expert_counts(reader, "num_experts", "num_local_experts")
    return MoEConfig(
        num_experts=num_experts,
        top_k=top_k,
        intermediate_size=reader.read(int, "moe_intermediate_size", low=1, high=MAX_SIZE),
        normalize=normalize,
        fused=False,
        shared_intermediate_size=shared_intermediate_size,
    )


def require_experts_everywhere(reader: HfReader) -> None:
    """Refuse a config.json in which a layer has no experts."""
    every = "a layer without experts is not supported: all layers must have them."
    if reader.read(int, "decoder_sparse_step", default=1) != 1:
        step = quote(reader.get("decoder_sparse_step"))
        reader.fail("decoder_sparse_step", f"is {step}, and {every}")
    if reader.read_list(int, "mlp_only_layers", default=()):
        reader.fail(
            "mlp_only_layers", f"is {quote(reader.get('mlp_only_layers'))}, and {every}"
        )
