"""The DFlash drafter inside the step: KV injection from the target's features, one pass over the
block, the drafts.

Source: DFlash (arXiv 2602.06036) and its reference implementation `dflash` 0.1.0. Embedding and
head are the target's, unless the drafter has its own: see graph/step.py and graph/draft_head.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import onnx_ir as ir

from trtllm_dflash.graph.draft_conv import DraftConv
from trtllm_dflash.graph.layers import LayerBuilder, Rotary, project_heads
from trtllm_dflash.graph.ops import DRAFT_ATTENTION
from trtllm_dflash.graph.ops.attention import ring_attribute
from trtllm_dflash.models.drafter import SINKS, DrafterConfig


@dataclass(frozen=True)
class DrafterBuilder:
    """The drafter, its inputs of this step, and its caches by port name; `written` collects their
    outputs.

    S context rows (features, at past_len …) come before the T block rows (at next_len …) wherever
    both are meant.
    """

    model: LayerBuilder
    config: DrafterConfig
    rotary: Rotary
    batch_and_block: ir.Value  # int64 [2] = B, T; or B, -1 where T may be 0
    batch_and_rows: ir.Value  # int64 [2] = B, S+T
    block_positions: ir.Value  # int64 [B, T]
    row_positions: ir.Value  # int64 [B, S+T]
    block_rows: ir.Value  # int64 [T]
    kv_positions: ir.Value
    caches: dict[str, ir.Value]
    rings: tuple[int, ...] = ()  # by layer, 1 where the caches are a ring; empty: none is
    written: dict[str, ir.Value] = field(default_factory=dict)

    def forward(self, features: ir.Value, block: ir.Value) -> ir.Value:
        """Final hidden rows [B·T, hidden] of the block.

        features [B·S, K·hidden] (tap layers in the order of target_layer_ids), block [B·T, hidden]
        (raw embeddings of anchor and masks). Features are projected once and meet the layers only
        as keys and values: no input norm, no residual.
        """
        m = self.model
        g = self.model.g
        context = m.rms_norm(m.linear(features, "fc"), "hidden_norm")
        for index in range(self.config.num_layers):
            with g.scope(f"layers.{index}"):
                block = self._layer(context, block, index)
        return m.rms_norm(block, "norm")

    def _layer(self, context: ir.Value, x: ir.Value, index: int) -> ir.Value:
        m = self.model
        g = self.model.g
        name = f"layers.{index}"
        normed = m.rms_norm(x, f"{name}.input_layernorm")
        x = g.Add(
            x,
            self._around(
                normed, f"{name}.attention_conv", lambda y: self._attention(context, y, index)
            ),
        )
        normed = m.rms_norm(x, f"{name}.post_attention_layernorm")
        return g.Add(
            x, self._around(normed, f"{name}.mlp_conv", lambda y: m.swiglu(y, f"{name}.mlp"))
        )

    def _around(
        self, x: ir.Value, name: str, sublayer: Callable[[ir.Value], ir.Value]
    ) -> ir.Value:
        """Return the sublayer of x [B·T, hidden], between its convolutions where there are any."""
        if self.config.conv is None:
            return sublayer(x)
        with self.model.g.scope(name.rsplit(".", 1)[-1]):
            conv = DraftConv.of(self.model, self.config.conv, x, name, self.batch_and_block)
            before = conv(x, 0)
        after = sublayer(before)
        with self.model.g.scope(name.rsplit(".", 1)[-1]):
            return conv(after, 1)

    def _attention(self, context: ir.Value, x: ir.Value, index: int) -> ir.Value:
        """Attention of the block over the injected context and itself.

        context ─┐
                 ├─ [context ; x] ─┬─ k_proj k_norm rope ─┐
        x ───┬───┘                 └─ v_proj ─────────────┼─ DFlashDraftAttention ─ o_proj
             └─ q_proj q_norm rope ───────────────────────┘
        """
        c = self.config
        m = self.model
        g = self.model.g
        name = f"layers.{index}.self_attn"
        q_shape = (c.num_q_heads, c.head_dim)
        kv_shape = (c.num_kv_heads, c.head_dim)
        block = (self.batch_and_block, self.block_positions)
        every = (self.batch_and_rows, self.row_positions)
        rows = self._append_block(context, x)
        q = self._project(x, f"{name}.q", q_shape, *block, is_value=False)
        k = self._project(rows, f"{name}.k", kv_shape, *every, is_value=False)
        v = self._project(rows, f"{name}.v", kv_shape, *every, is_value=True)
        key = f"draft_key.{index}"
        value = f"draft_value.{index}"
        mask = c.layers[index]
        sinks = [m.weights.value(g, f"{name}.{SINKS}")] if c.has_sinks else []
        out, self.written[key], self.written[value] = DRAFT_ATTENTION(
            g,
            q,
            k,
            v,
            self.caches[key],
            self.caches[value],
            self.row_positions,
            self.kv_positions,
            self.block_rows,
            *sinks,
            scale=c.head_dim**-0.5,
            window_size=mask.window,
            causal=mask.causal,
            **ring_attribute(self.rings, index),
        )
        return m.linear(g.Reshape(out, [-1, c.num_q_heads * c.head_dim]), f"{name}.o_proj")

    def _project(
        self,
        x: ir.Value,
        name: str,
        heads: tuple[int, int],
        batch_and_rows: ir.Value,
        positions: ir.Value,
        *,
        is_value: bool,
    ) -> ir.Value:
        """Project rows to heads; queries and keys are normed and rotated, values are not."""
        return project_heads(
            self.model,
            x,
            name,
            heads,
            batch_and_rows,
            rotary=self.rotary,
            positions=positions,
            is_value=is_value,
            norm=not is_value,
        )

    def _append_block(self, context: ir.Value, x: ir.Value) -> ir.Value:
        """[B·S, hidden] and [B·T, hidden] as [B·(S+T), hidden], row by row of the batch."""
        g = self.model.g
        hidden = self.config.hidden_size
        batch = g.Slice(self.batch_and_block, [0], [1], [0])
        parts = [
            g.Reshape(part, g.Concat(batch, [-1, hidden], axis=0)) for part in (context, x)
        ]
        return g.Reshape(g.Concat(*parts, axis=1), [-1, hidden])
