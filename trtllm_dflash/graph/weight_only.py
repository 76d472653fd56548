"""Linears and embedding rows whose weights are integers by block, in ONNX Runtime's operators.

    x ─ MatMulNBits (codes, scales, zero points) ─ y       ids ─ GatherBlockQuantized ─ rows

Both are of the domain com.microsoft. A head and an embedding that are one table are stored once.

MatMulNBits rounds each row of x to 8 bits too, by block of 32, and multiplies integers
(accuracy_level 4). The blocks of a row say nothing about other rows. With blocks of 32 a row's
result is then the same bits whatever rows stand beside it. Other blocks and accuracy levels do not
keep that: tests hold it. With 4 bits a row alone differs on some processors, as sessions know
(`runtime.sessions.integer_rows`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from trtllm_dflash.checkpoint.block_integers import (
    BLOCK_LENGTH,
    BlockIntegers,
    bits_of,
    is_rounded,
    num_blocks,
)
from trtllm_dflash.graph.builder import GraphBuilder
from trtllm_dflash.graph.stored_integers import StoredIntegers
from trtllm_dflash.graph.weight_source import WeightSource

RUNTIME_DOMAIN = "com.microsoft"  # operators of ONNX Runtime
PRODUCT = "MatMulNBits"
INTEGER_PRODUCTS = 4  # the accuracy level of products of integers


@dataclass(frozen=True)
class WeightOnlyLinears:
    """The weights of one model as integers of `precision`, a key of BITS."""

    g: GraphBuilder
    weights: WeightSource
    precision: str
    _known: dict[str, StoredIntegers] = field(default_factory=dict)

    def has(self, module: str) -> bool:
        """Tell whether the weight of a linear or table is one of integers."""
        name = f"{module}.weight"
        return is_rounded(name, self.weights.tensors[name])

    def product(
        self,
        x: ir.Value,
        module: str,
        *bias: ir.Value,
        rows: np.ndarray | None = None,
        alias: str = "",
    ) -> ir.Value:
        """Return x [N, in] · weightᵀ (+ bias), of all of the weight's rows or of `rows` (int64).

        Those are stored once more, under the name `alias`.
        """
        stored = self._stored(module, rows, alias)
        operands: list[ir.Value | None] = [
            x,
            stored.packed(),
            stored.scales(),
            stored.zero_points(),
        ]
        operands += [None, *bias] if bias else []
        attributes = {
            "K": stored.columns,
            "N": stored.num_rows,
            "bits": stored.bits,
            "block_size": BLOCK_LENGTH,
            "accuracy_level": INTEGER_PRODUCTS,
        }
        return self.g.emit(PRODUCT, operands, attributes, domain=RUNTIME_DOMAIN)[0]

    def rows(self, ids: ir.Value, module: str) -> ir.Value:
        """Return the rows [B, N, in] of a table at ids [B, N]; its codes have 8 bits."""
        g = self.g
        stored = self._stored(module, None, "")
        by_block = [stored.num_rows, num_blocks(stored.columns), 1]
        scales, zero_points = (
            g.Reshape(part, by_block) for part in (stored.scales(), stored.zero_points())
        )
        attributes = {
            "bits": stored.bits,
            "block_size": BLOCK_LENGTH,
            "gather_axis": 0,
            "quantize_axis": 2,
        }
        operands = [stored.packed(), ids, scales, zero_points]
        rows = g.emit("GatherBlockQuantized", operands, attributes, domain=RUNTIME_DOMAIN)[0]
        # All sizes are given: ids may be of no tokens.
        rows = g.Reshape(rows, [0, 0, num_blocks(stored.columns) * BLOCK_LENGTH])
        if stored.columns % BLOCK_LENGTH:
            rows = g.Slice(rows, [0], [stored.columns], [2])
        return rows

    def _stored(self, module: str, rows: np.ndarray | None, alias: str) -> StoredIntegers:
        info = self.weights.tensors[f"{module}.weight"]
        name = f"{module}.weight" if rows is None else alias
        if name in self._known:
            return self._known[name]
        size = (info.shape[0] if rows is None else len(rows), info.shape[1])

        def make() -> BlockIntegers:
            weight = info.array() if rows is None else info.array()[rows]
            return BlockIntegers.of(weight, bits)

        bits = bits_of(f"{module}.weight", self.precision)
        stored = StoredIntegers(self.g, self.weights, name, size, bits, make)
        self._known[name] = stored
        return stored
