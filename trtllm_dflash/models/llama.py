"""LlamaForCausalLM: Llama 2/3.x, SmolLM2."""

from __future__ import annotations

import onnx_ir as ir

from trtllm_dflash.graph.target import TargetBuilder


def layer(c: TargetBuilder, x: ir.Value, index: int, *, qk_norm: bool = False) -> ir.Value:
    """Decoder layer `index` of the residual stream x [B·S, hidden]."""
    m, g, name = c.model, c.model.g, f"model.layers.{index}"
    with g.scope(f"layers.{index}"):
        x = g.Add(
            x,
            c.attention(
                m.rms_norm(x, f"{name}.input_layernorm"),
                index,
                f"{name}.self_attn",
                qk_norm=qk_norm,
            ),
        )
        return g.Add(x, m.swiglu(m.rms_norm(x, f"{name}.post_attention_layernorm"), f"{name}.mlp"))
