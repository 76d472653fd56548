"""The next block: the rows that the drafter computes of it, and lookup's part.

On CPUs the rows are an input of the step, so that there may be none. The drafter then takes the
step's tokens in and drafts nothing, and lookup fills the block of every slot.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from trtllm_dflash.engine_dir.io_tensors import BLOCK_ROWS, DRAFT_SOURCES
from trtllm_dflash.graph.builder import GraphBuilder
from trtllm_dflash.graph.ops import LOOKUP
from trtllm_dflash.options.draft_sources import SOURCE_BITS


@dataclass(frozen=True)
class NextBlock:
    """Blocks of `block_size` tokens, T, in a graph with these inputs."""

    g: GraphBuilder
    inputs: dict[str, ir.Value]
    block_size: int

    @property
    def may_skip(self) -> bool:
        """Return whether a step's block may have no rows."""
        return BLOCK_ROWS.name in self.inputs

    def rows(self, count: int) -> tuple[ir.Value, ir.Value]:
        """Return 0, 1, … for each of the `count` rows of a block, and how many there are, [1].

        Both are int64. Where the anchor's row drafts too, there is one row less than tokens.
        """
        g = self.g
        if not self.may_skip:
            size = g.as_value([count])
            return g.arange(size), size
        given = self.inputs[BLOCK_ROWS.name]
        if count < self.block_size:
            given = g.Slice(given, [0], [count], [0])
        return given, g.size(given, 0)

    def filled(self, drafts: ir.Value, bonus: ir.Value) -> ir.Value:
        """Return drafts [B, T-1]: where the drafter has none, tokens that lookup replaces."""
        if not self.may_skip:
            return drafts
        g = self.g
        count = self.block_size - 1
        filler = g.Expand(bonus, g.Concat(g.size(bonus, 0), [count], axis=0))
        return g.Slice(g.Concat(drafts, filler, axis=1), [0], [count], [1])

    def lookup(
        self, history: ir.Value, bonus: ir.Value, drafts: ir.Value, next_len: ir.Value
    ) -> tuple[ir.Value, ...]:
        """Return the better source's drafts [B, T-1], and the tally."""
        g = self.g
        before = [self.inputs[name] for name in ("input_ids", "num_known", "past_len")]
        sources = self.inputs[DRAFT_SOURCES]
        if self.may_skip:
            is_empty = g.Equal(g.size(self.inputs[BLOCK_ROWS.name], 0), 0)
            only_lookup = g.constant(np.array([SOURCE_BITS["lookup"]], np.int32))
            sources = g.Where(is_empty, only_lookup, sources)
        behind = self.inputs["tally"], sources, self.inputs["kv_positions"]
        return LOOKUP(g, history, *before, next_len, bonus, drafts, *behind)
