"""The gated delta rule over the rows of a chunk at once: its closed form.

The corrections u of the rows follow from (I + N) u = r, where N is strictly lower triangular (WY
form, arXiv 2406.06484). The inverse of I + N is built from those of its diagonal blocks. A series
of powers of N would be shorter, but its terms cancel badly where keys repeat.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from trtllm_dflash.graph.builder import GraphBuilder

END = 2**31 - 1  # of a slice


@dataclass(frozen=True)
class Heads:
    """n rows of a chunk, float32, ready for the rule.

    qk [B, Hk, 1, 2n, Dk] (queries, then keys), v [B, Hk, r, n, Dv], decay (its logarithm) and beta
    [B, Hk, r, n].
    """

    qk: ir.Value
    v: ir.Value
    decay: ir.Value
    beta: ir.Value


@dataclass(frozen=True)
class DeltaRule:
    """The gated delta rule over n rows at once, n at most `limit`."""

    g: GraphBuilder
    rows: ir.Value  # int64 [1] = n
    lower: ir.Value  # [n, n], 1 on and below the diagonal
    strict: ir.Value  # [n, n], 1 below it
    ends: ir.Value  # [1, 1, 1, n + 1, n]: lower, and a row of ones
    starts: ir.Value  # [n, n + 1]: a column of ones, and strict
    identity: ir.Value
    blocks: tuple[ir.Value, ...]  # for blocks of 1, 2, 4, … rows: those below the diagonal ones

    @classmethod
    def of(cls, g: GraphBuilder, rows: ir.Value, limit: int) -> DeltaRule:
        """Return the rule with its masks: the first rows and columns of constants."""
        ones = np.ones((limit, limit), np.float32)
        row = np.arange(limit)
        square = g.Concat(rows, rows, axis=0)

        def first(mask: np.ndarray) -> ir.Value:
            return g.Slice(g.constant(mask.astype(np.float32)), [0, 0], square, [0, 1])

        blocks, size = [], 1
        while size < limit:
            block = row // size
            is_below = (block[:, None] % 2 == 1) & (block[:, None] - 1 == block[None, :])
            blocks.append(first(is_below))
            size *= 2
        lower, strict = first(np.tril(ones)), first(np.tril(ones, -1))
        row_of_ones = g.Slice(g.constant(ones[:1]), [0], rows, [1])
        return cls(
            g,
            rows,
            lower,
            strict,
            ends=g.Unsqueeze(g.Concat(lower, row_of_ones, axis=0), [0, 1, 2]),
            starts=g.Concat(g.Transpose(row_of_ones, perm=[1, 0]), strict, axis=1),
            identity=first(np.eye(limit)),
            blocks=tuple(blocks),
        )

    def __call__(
        self, heads: Heads, kept: ir.Value, state: ir.Value
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Return the states behind all rows and behind the kept ones, and the rows' results.

        kept float32 [B, n], 1 for some first rows; state [B, Hk, r, Dk, Dv]; results
        [B, Hk, r, n, Dv], not yet scaled.
        """
        g = self.g
        kept = g.Unsqueeze(kept, [1, 2, 3])  # [B, 1, 1, 1, n]
        from_start, from_rows = self._decays(heads.decay, kept)
        to_rows, between = (g.Slice(x, [0], self.rows, [3]) for x in (from_start, from_rows))
        between = g.Mul(between, self.lower)
        beta = g.Unsqueeze(heads.beta, [4])

        _, k = self._halves(heads.qk)
        keys = g.Transpose(k, perm=[0, 1, 2, 4, 3])
        q_of_k, k_of_k = self._halves(g.MatMul(heads.qk, keys))
        q_of_state, k_of_state = self._halves(g.MatMul(heads.qk, state))
        inverse = self._inverse(g.Mul(g.Mul(g.Mul(k_of_k, between), beta), self.strict))
        wanted = g.Mul(g.Sub(heads.v, g.Mul(k_of_state, to_rows)), beta)
        u = g.MatMul(inverse, wanted)
        out = g.Add(g.Mul(q_of_state, to_rows), g.MatMul(g.Mul(q_of_k, between), u))

        def behind(row: int, mask: ir.Value | None) -> ir.Value:
            """Return the state behind the rows of a mask, whose decays are in `row`."""
            end = row + 1 or END
            of_state, weight = (g.Slice(x, [row], [end], [3]) for x in (from_start, from_rows))
            weight = weight if mask is None else g.Mul(weight, mask)
            weighted = g.Mul(u, g.Transpose(weight, perm=[0, 1, 2, 4, 3]))
            return g.Add(g.Mul(state, of_state), g.MatMul(keys, weighted))

        return behind(-2, None), behind(-1, kept), out

    def _decays(self, decay: ir.Value, kept: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Return what is left of the state, and of row j's part of it.

        They are [B, Hk, r, n + 2, 1] and [B, Hk, r, n + 2, n]. So much is left behind row i, behind
        all rows (row -2) and behind the last kept one (row -1). Each is e to a sum of just the
        decays between, so that nothing cancels.
        """
        g = self.g
        batch = g.Concat(g.size(kept, 0), [1, 1, 1, 1], axis=0)
        ends = g.Concat(g.Expand(self.ends, batch), kept, axis=3)
        left = g.Exp(g.MatMul(g.Mul(ends, g.Unsqueeze(decay, [3])), self.starts))
        return g.Slice(left, [0], [1], [4]), g.Slice(left, [1], [END], [4])

    def _halves(self, x: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Return the first and the last n rows of x [B, Hk, r, 2n, …]."""
        g = self.g
        return g.Slice(x, [0], self.rows, [3]), g.Slice(x, self.rows, [END], [3])

    def _inverse(self, n: ir.Value) -> ir.Value:
        """Return (I + n)^-1 of strictly lower triangular n [..., rows, rows].

        (A 0; C D)^-1 is (A^-1 0; -D^-1 C A^-1  D^-1), for all blocks of a size at once. The first
        rows and columns of an inverse are the inverse of the first rows and columns.
        """
        g = self.g
        inverse = self.identity
        for size, mask in enumerate(self.blocks):
            below = g.Mul(n, mask)
            if size:
                below = g.MatMul(g.MatMul(inverse, below), inverse)
            inverse = g.Sub(inverse, below)
        return inverse
