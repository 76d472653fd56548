"""The operations of a target's layers in one step: models.decoder.LayerOps on the graph."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import onnx_ir as ir

from trtllm_dflash.errors import GraphError
from trtllm_dflash.graph.gated_delta_net import GatedDeltaNet, Memory
from trtllm_dflash.graph.kv_scales import KvScales
from trtllm_dflash.graph.layers import LayerBuilder, Rotary, project_heads, shape_heads
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
    lengths: tuple[ir.Value, ...]  # past_len, state_len, num_known; empty without states
    experts_as: ExpertStorage
    kv_scales: KvScales | None = None  # where the caches are FP8
    rings: tuple[int, ...] = ()  # by layer, 1 where the caches are a ring; empty: none is
    row_order: bool = False  # of gated delta nets' bodies
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
           ├─ k_proj (k_norm) rope ─┼─ DFlashVerifyAttention (· sigmoid(gate)) ─ o_proj
           └─ v_proj ───────────────┘

        A layer may have a window, its heads sinks, and q_proj gates: the configuration says it.
        """
        c = self.config.at_layer(layer)
        m = self.model
        g = self.model.g
        kv_shape = (c.num_kv_heads, c.head_dim)
        q, gate = self._queries(x, name)
        k = self._projected(x, f"{name}.k", kv_shape, norm=c.qk_norm)
        v = self._projected(x, f"{name}.v", kv_shape, is_value=True)
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
        out = g.Reshape(out, [-1, c.num_q_heads * c.head_dim])
        if gate is not None:
            out = g.Mul(out, g.Sigmoid(gate))
        return m.linear(out, f"{name}.o_proj")

    def _queries(self, x: ir.Value, name: str) -> tuple[ir.Value, ir.Value | None]:
        """Return the queries [B, S, Hq, D], and the gate [B·S, Hq·D] if q_proj has one.

        It then has the rows of a head's query, those of its gate, and the next head's.
        """
        c = self.config
        g = self.model.g
        x = self.model.linear(x, f"{name}.q_proj")
        gate = None
        if c.gated_attention:
            by_head = g.Reshape(x, [-1, c.num_q_heads, 2 * c.head_dim])
            sizes = [c.head_dim, c.head_dim]
            x, gate = g.emit("Split", [by_head, sizes], {"axis": 2}, num_outputs=2)
            gate = g.Reshape(gate, [-1, c.num_q_heads * c.head_dim])
        queries = shape_heads(
            self.model,
            x,
            (c.num_q_heads, c.head_dim),
            self.batch_and_width,
            rotary=self.rotary,
            positions=self.positions,
            norm=f"{name}.q_norm" if c.qk_norm else None,
        )
        return queries, gate

    def is_linear(self, layer: int) -> bool:
        """Tell whether a layer is a gated delta net."""
        return self.config.linear_layers[layer]

    def linear_attention(self, x: ir.Value, layer: int, name: str) -> ir.Value:
        """Return the gated delta net `name` of x [B·S, hidden] over layer's window and state."""
        config = self.config.linear_attention
        if config is None:
            raise GraphError(f"{name}: {self.config.model_type} has no linear attention")
        window = f"target_window.{layer}"
        state = f"target_state.{layer}"
        memory = Memory(self.caches[window], self.caches[state], *self.lengths)
        net = GatedDeltaNet(self.model, config, self.batch_and_width, name, self.row_order)
        out, self.written[window], self.written[state] = net(x, memory)
        return out

    def shared_expert(self, x: ir.Value, name: str) -> ir.Value:
        """Return the expert of `name` that every token uses, times the sigmoid of its gate."""
        m = self.model
        g = self.model.g
        gate = g.Sigmoid(m.linear(x, f"{name}.shared_expert_gate"))
        with g.scope("shared_expert"):
            return g.Mul(m.swiglu(x, f"{name}.shared_expert"), gate)

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
        norm: bool = False,
        is_value: bool = False,
    ) -> ir.Value:
        return project_heads(
            self.model,
            x,
            name,
            heads_and_dim,
            self.batch_and_width,
            rotary=self.rotary,
            positions=self.positions,
            is_value=is_value,
            norm=norm,
        )
