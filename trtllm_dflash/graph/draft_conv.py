"""The grouped dynamic causal convolutions of DFlash 2, in standard operators.

Source: the reference implementation `dflash` 0.1.0.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from trtllm_dflash.graph.layers import LayerBuilder
from trtllm_dflash.models.dflash2 import DraftConvConfig


@dataclass(frozen=True)
class DraftConv:
    """The two convolutions around a sublayer: side 0 of its input, side 1 of its output.

    Row t of a block becomes the sum over o of (base[side, o] + dynamic[t, side, o]) · row t-o. Rows
    before the anchor's are 0, and slots do not mix. `base` [2·kernel_size, groups, group_size] has
    a number for each channel, `dynamic` [B, T, 2·kernel_size·groups] for each group of them. Both
    sides' dynamic part comes from the sublayer's input. All is float32.
    """

    model: LayerBuilder
    config: DraftConvConfig
    groups: int
    base: ir.Value
    dynamic: ir.Value
    batch_and_block: ir.Value  # int64 [2] = B, T

    @classmethod
    def of(
        cls,
        m: LayerBuilder,
        config: DraftConvConfig,
        x: ir.Value,
        name: str,
        batch_and_block: ir.Value,
    ) -> DraftConv:
        """Return the convolutions `name` around the sublayer of x [B·T, hidden]."""
        g = m.g
        base = m.weights.wide(g, f"{name}.base_kernel")
        hidden = m.weights.tensors[f"{name}.base_kernel"].shape[2]
        groups = hidden // config.group_size
        base = g.Reshape(base, [2 * config.kernel_size, groups, config.group_size])
        kernels = m.wide(m.linear(x, f"{name}.kernel_projection"))
        sizes = [2 * config.kernel_size * groups]
        dynamic = g.Reshape(kernels, g.Concat(batch_and_block, sizes, axis=0))
        return cls(m, config, groups, base, dynamic, batch_and_block)

    def __call__(self, x: ir.Value, side: int) -> ir.Value:
        """Return x [B·T, hidden] convolved, in the model's type."""
        m = self.model
        g = m.g
        sizes = [self.groups, self.config.group_size]
        blocks = g.Reshape(m.wide(x), g.Concat(self.batch_and_block, sizes, axis=0))
        total = g.Mul(self._kernel(side, 0), blocks)
        for offset in range(1, self.config.kernel_size):
            term = g.Mul(self._kernel(side, offset), self._earlier(blocks, offset))
            total = g.Add(total, term)
        return m.narrow(g.Reshape(total, [-1, self.groups * self.config.group_size]))

    def _kernel(self, side: int, offset: int) -> ir.Value:
        """Return what multiplies the row `offset` before, [B, T, groups, group_size]."""
        g = self.model.g
        index = side * self.config.kernel_size + offset
        part = g.Slice(self.dynamic, [index * self.groups], [(index + 1) * self.groups], [2])
        return g.Add(g.Unsqueeze(part, [3]), g.Slice(self.base, [index], [index + 1], [0]))

    def _earlier(self, blocks: ir.Value, offset: int) -> ir.Value:
        """Return the rows `offset` before those of blocks [B, T, groups, group_size]."""
        g = self.model.g
        padded = g.Pad(blocks, [0, offset, 0, 0, 0, 0, 0, 0])
        return g.Slice(padded, [0], g.size(blocks, 1), [1])
