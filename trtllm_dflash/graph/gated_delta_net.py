"""A gated delta net: linear attention whose memory is a state for each head.

    x ─┬─ in_proj_qkv ──── qkv ─┐
       ├─ in_proj_b, _a ─ gates ─┴─ DFlashGatedDelta ─┐
       └─ in_proj_z ───────────────────── z ─ silu ───┴─ norm ─ out_proj

Qwen3-Next has two projections, in_proj_qkvz and in_proj_ba, in which the rows of a key head stand
together. Their results are put in the order above. So weights stay as they are, quantized or not.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from trtllm_dflash.graph.layers import LayerBuilder
from trtllm_dflash.graph.ops import GATED_DELTA
from trtllm_dflash.graph.ops.gated_delta import FOR_CPU, ROW_ORDER
from trtllm_dflash.models.linear_attention import LinearAttentionConfig


@dataclass(frozen=True)
class Memory:
    """What a layer's operator reads and writes besides its rows, and up to where it is filled."""

    window: ir.Value  # [B, 1, R, C + 2·Hv]
    state: ir.Value  # float32 [B, Hv, Dk, Dv]
    past_len: ir.Value
    state_len: ir.Value
    num_known: ir.Value


@dataclass(frozen=True)
class GatedDeltaNet:
    """The gated delta net `name`, as in "model.layers.0.linear_attn".

    `row_order`: its body goes row by row, so that every width gives the same bits.
    """

    model: LayerBuilder
    config: LinearAttentionConfig
    batch_and_width: ir.Value  # int64 [2]
    name: str
    row_order: bool = False

    def __call__(self, x: ir.Value, memory: Memory) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Return the layer's result of x [B·S, hidden], its window and its state."""
        m = self.model
        g = self.model.g
        c = self.config
        fused = c.fused_projections
        qkv, z, gates = self._fused_projections(x) if fused else self._projections(x)
        out, window, state = GATED_DELTA(
            g,
            self._by_slot(qkv, c.conv_size),
            self._by_slot(gates, 2 * c.num_value_heads),
            m.weights.value(g, f"{self.name}.conv1d.weight"),
            m.weights.wide(g, f"{self.name}.A_log"),
            m.weights.wide(g, f"{self.name}.dt_bias"),
            memory.window,
            memory.state,
            memory.past_len,
            memory.state_len,
            memory.num_known,
            num_key_heads=c.num_key_heads,
            **self._form(),
        )
        out, z = (g.Reshape(value, [-1, c.value_dim]) for value in (out, z))
        normed = g.Reshape(m.gated_norm(out, z, f"{self.name}.norm"), [-1, c.value_size])
        return m.linear(normed, f"{self.name}.out_proj"), window, state

    def _form(self) -> dict[str, int]:
        """Return the attributes that say how the operator's body takes its rows."""
        if self.row_order:
            return {ROW_ORDER.name: 1}
        is_for_cpu = self.model.dtype == ir.DataType.FLOAT
        return {FOR_CPU.name: 1} if is_for_cpu else {}

    def _projections(self, x: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Return qkv [B·S, C], z [B·S, Hv·Dv] and the gates b, then a [B·S, 2·Hv]."""
        m = self.model
        qkv, z, b, a = (
            m.linear(x, f"{self.name}.in_proj_{part}") for part in ("qkv", "z", "b", "a")
        )
        return qkv, z, m.g.Concat(b, a, axis=1)

    def _fused_projections(self, x: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Return the same of projections whose rows are by key head: q, k, v, z and b, a."""
        m = self.model
        g = self.model.g
        c = self.config
        share = c.num_value_heads // c.num_key_heads
        values = share * c.value_dim
        q, k, v, z = self._split(
            m.linear(x, f"{self.name}.in_proj_qkvz"), (c.key_dim, c.key_dim, values, values)
        )
        b, a = self._split(m.linear(x, f"{self.name}.in_proj_ba"), (share, share))
        return g.Concat(q, k, v, axis=1), z, g.Concat(b, a, axis=1)

    def _split(self, x: ir.Value, sizes: tuple[int, ...]) -> tuple[ir.Value, ...]:
        """Return each part of x [B·S, Hk·sum], a part's heads side by side: [B·S, Hk·size]."""
        g = self.model.g
        heads = self.config.num_key_heads
        by_head = g.Reshape(x, [-1, heads, sum(sizes)])
        parts = g.emit("Split", [by_head, list(sizes)], {"axis": 2}, num_outputs=len(sizes))
        return tuple(
            g.Reshape(part, [-1, heads * size]) for part, size in zip(parts, sizes, strict=True)
        )

    def _by_slot(self, x: ir.Value, columns: int) -> ir.Value:
        """Return x [B·S, columns] as [B, S, columns]."""
        g = self.model.g
        return g.Reshape(x, g.Concat(self.batch_and_width, [columns], axis=0))
