"""GptOssForCausalLM: fused experts in every layer, windows in some, attention sinks in all."""

from __future__ import annotations

from trtllm_dflash.models.base import TargetFamily
from trtllm_dflash.models.decoder import TARGET_LAYER, attention_specs, moe_layer, target_table
from trtllm_dflash.models.hf_config import MAX_SIZE, HfReader
from trtllm_dflash.models.moe import MoEConfig, read_expert_counts
from trtllm_dflash.models.tensor_specs import TensorSpec
from trtllm_dflash.models.windows import FULL, SLIDING, read_layer_types, windows_of


def read_experts(reader: HfReader) -> MoEConfig:
    """Read experts with a clamped SwiGLU of its own slope; the softmax is over the chosen ones."""
    num_experts, top_k = read_expert_counts(reader, "num_local_experts", "num_experts")
    limit = reader.read(float, "swiglu_limit", default=7.0)
    if limit <= 0:
        reader.fail(
            "swiglu_limit", f"is {limit}, expected more than 0: gates are cut above it."
        )
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


def read_windows(reader: HfReader, num_layers: int) -> tuple[int, ...]:
    """Read each layer's window from `layer_types`; by default every second one slides."""
    default = tuple(FULL if layer % 2 else SLIDING for layer in range(num_layers))
    layer_types = read_layer_types(reader, num_layers, "gpt_oss", default=default)
    return windows_of(reader, layer_types)


def _expert_specs(mlp: str) -> tuple[TensorSpec, ...]:
    count = "moe.num_experts"
    size = "moe.intermediate_size"
    hidden = "hidden_size"
    gate_up = (count, hidden, f"2*{size}")
    down = (count, size, hidden)
    return (
        TensorSpec(f"{mlp}router.weight", (count, hidden)),
        TensorSpec(f"{mlp}router.bias", (count,)),
        TensorSpec(f"{mlp}experts.gate_up_proj", gate_up, are_experts=True),
        TensorSpec(f"{mlp}experts.gate_up_proj_bias", (count, f"2*{size}")),
        TensorSpec(f"{mlp}experts.down_proj", down, are_experts=True),
        TensorSpec(f"{mlp}experts.down_proj_bias", (count, hidden)),
    )


FAMILY = TargetFamily(
    "GptOssForCausalLM",
    "gpt_oss",
    tensors=target_table(
        *attention_specs(TARGET_LAYER),
        TensorSpec(f"{TARGET_LAYER}self_attn.sinks", ("num_q_heads",)),
        *_expert_specs(f"{TARGET_LAYER}mlp."),
    ),
    layer=moe_layer,
    read_experts=read_experts,
    read_windows=read_windows,
    sinks=True,
    defaults={"attention_bias": True, "num_key_value_heads": 8, "sliding_window": 128},
)
