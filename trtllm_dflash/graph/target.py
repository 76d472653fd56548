"""The operations of a target's layers in one step: models.decoder.LayerOps on the graph."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import onnx_ir as ir

from trtllm_dflash.errors import GraphError
from trtllm_dflash.graph.kv_scales import KvScales
from trtllm_dflash.graph.layers import LayerBuilder, Rotary, project_heads
from trtllm_dflash.graph.moe_layer import Experts, ExpertStorage
from trtllm_dflash.graph.ops import VERIFY_ATTENTION
from trtllm_dflash.graph.ops.attention import ring_attribute
from trtllm_dflash.models.base import TargetConfig


@dataclass(frozen=True)
class TargetBuilder:
    """The target, its inputs of this step, and its caches by port name; `written` collects their
    outputs.
    """

    model: LayerBuilder
    config: TargetConfig
    rotary: Rotary
    batch_and_width: ir.Value  # int64 [2]
    positions: ir.Value  # int64 [B, S]
    kv_positions: ir.Value
    caches: dict[str, ir.Value]
    experts_as: ExpertStorage
    kv_scales: KvScales | None = None  # where the caches are FP8
    rings: tuple[int, ...] = ()  # by layer, 1 where the caches are a ring; empty: none is
    written: dict[str, ir.Value] = field(default_factory=dict)

    def scope(self, name: str) -> AbstractContextManager[None]:
        """Put the nodes built inside under `name`."""
        return self.model.g.scope(name)

    def add(self, x: ir.Value, y: ir.Value) -> ir.Value:
        """Return x + y."""
        return self.model.g.Add(x, y)

    def rms_norm(self, x: ir.Value, name: str) -> ir.Value:
        """Return the norm `name` of x [B·S, hidden]."""
        return self.model.rms_norm(x, name)

    def swiglu(self, x: ir.Value, name: str) -> ir.Value:
        """Return the gated MLP `name` of x [B·S, hidden]."""
        return self.model.swiglu(x, name)

    def attention(self, x: ir.Value, layer: int, name: str) -> ir.Value:
        """Self-attention of x [B·S, hidden] over layer's cache.

        x ─┬─ q_proj (q_norm) rope ─┐
           ├─ k_proj (k_norm) rope ─┼─ DFlashVerifyAttention ─ o_proj
           └─ v_proj ───────────────┘

        A layer may have a window, and its heads sinks: the configuration says it.
        """
        c = self.config.at_layer(layer)
        if c.gated_attention:
            raise GraphError(f"{name}: gated attention is not built")
        m = self.model
        g = self.model.g
        q_shape = (c.num_q_heads, c.head_dim)
        kv_shape = (c.num_kv_heads, c.head_dim)
        q = self._projected(x, f"{name}.q", q_shape, norm=c.qk_norm, rotate=True)
        k = self._projected(x, f"{name}.k", kv_shape, norm=c.qk_norm, rotate=True)
        v = self._projected(x, f"{name}.v", kv_shape, norm=False, rotate=False)
        key = f"target_key.{layer}"
        value = f"target_value.{layer}"
        sinks = [m.weights.value(g, f"{name}.sinks")] if c.sinks else []
        out, self.written[key], self.written[value] = VERIFY_ATTENTION(
            g,
            q,
            k,
            v,
            self.caches[key],
            self.caches[value],
            self.positions,
            self.kv_positions,
            *sinks,
            scale=c.head_dim**-0.5,
            window_size=c.windows[layer],
            **ring_attribute(self.rings, layer),
            **self._cache_scales(layer),
        )
        return m.linear(g.Reshape(out, [-1, c.num_q_heads * c.head_dim]), f"{name}.o_proj")

    def is_linear(self, layer: int) -> bool:
        """Tell whether a layer is a gated delta net."""
        return self.config.linear_layers[layer]

    def linear_attention(self, x: ir.Value, layer: int, name: str) -> ir.Value:  # noqa: ARG002
        """Refuse gated delta nets, which this graph does not have yet."""
        raise GraphError(f"{name}: gated delta nets are not built")

    def shared_expert(self, x: ir.Value, name: str) -> ir.Value:  # noqa: ARG002
        """Refuse shared experts, which this graph does not have yet."""
        raise GraphError(f"{name}: shared experts are not built")

    def experts(self, x: ir.Value, name: str) -> ir.Value:
        """Return the mixture of experts `name` of x [B·S, hidden]."""
        config = self.config
        if config.moe is None:
            raise GraphError(f"{name}: {config.model_type} has no experts")
        return Experts(self.model, config.moe, config.hidden_size, self.experts_as, name)(x)

    def _cache_scales(self, layer: int) -> dict[str, float]:
        return (
            {}
            if self.kv_scales is None
            else dict(zip(("key_scale", "value_scale"), self.kv_scales[layer], strict=True))
        )

    def _projected(
        self,
        x: ir.Value,
        name: str,
        heads_and_dim: tuple[int, int],
        *,
        norm: bool,
        rotate: bool,
    ) -> ir.Value:
        return project_heads(
            self.model,
            x,
            name,
            heads_and_dim,
            self.batch_and_width,
            rotary=self.rotary if rotate else None,
            positions=self.positions,
            norm=norm,
        )
