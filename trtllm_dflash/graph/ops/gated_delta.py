"""DFlashGatedDelta: linear attention with a state, the gated delta rule behind a convolution.

The rule, in float32, for a row t of a value head, whose state S is [Dk, Dv]:

    S ← e^g S;  S ← S + k (β (v - kᵀ S))ᵀ;  out = Dk^-0.5 qᵀ S

A causal convolution over the last Kc rows and silu make q, k and v, of which q and k have length 1.
There β is sigmoid(b), and g is -exp(a_log) · softplus(a + dt_bias). Source: Gated Delta Networks
(arXiv 2412.06464).

A step must not spoil the state with drafts that are then rejected. So a state holds what is known,
and the window the raw rows behind it. A step first brings the state to its own position: the drafts
that were accepted meanwhile go through the rule again. It is called lazy commit. The raw rows are
the same, so they change the state as they did when they were verified.

The body takes rows in chunks of CHUNK_ROWS. In a chunk the corrections u of all rows follow from
(I + N) u = r, where N is lower triangular (WY form, arXiv 2406.06484). The inverse of I + N is
built from those of its diagonal blocks. A series of powers of N would be shorter, but its terms
cancel badly where keys repeat.

Memory: one buffer may be bound to an input and its output. ONNX Runtime then writes the output as
soon as it has the values, whoever else still reads the input. Window and state are therefore
written whole, from values that depend on all that is read.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from trtllm_dflash.graph.builder import GraphBuilder
from trtllm_dflash.graph.kernel_specs import GATED_DELTA_KERNEL
from trtllm_dflash.graph.ops.spec import Attribute, OpSpec, Tensor

CHUNK_ROWS = 32
NORM_EPS = 1e-6  # added to the squared length of a query or key head
# e to this power is 0 in float32, and sums of such stay finite.
LOWEST_DECAY = -200.0

NUM_KEY_HEADS = Attribute("num_key_heads", 1, "heads of queries and keys; it divides Hv")
ROW_ORDER = Attribute(
    "row_order",
    0,
    "1: the body takes row by row, so that every width gives the same bits; left out: in chunks,"
    " whose rounding depends on the width. A kernel always goes row by row",
    optional=True,
    body_only=True,
)
_FLOAT, _INT64 = ir.DataType.FLOAT, ir.DataType.INT64


@dataclass(frozen=True)
class _Rows:
    """The raw rows of each slot from a position on: those of the window, then the step's."""

    g: GraphBuilder
    raw: ir.Value  # [B, R + S, C + 2·Hv], the window and the step's rows behind it
    first: ir.Value  # int64 [B, 1], the position of row 0
    step_begin: ir.Value  # int64 [B, 1], which row is the step's first
    window_rows: ir.Value  # int64 [1] = R

    def take(self, index: ir.Value) -> ir.Value:
        """Return rows `index` [B or 1, N], as [B, N, C + 2·Hv]: 0 at negative positions.

        Behind the last row it is repeated.
        """
        g = self.g
        behind = g.Sub(index, self.step_begin)
        place = g.Where(g.Less(behind, 0), index, g.Add(behind, self.window_rows))
        last = g.Sub(g.size(self.raw, 1), 1)
        place = g.Min(g.Max(place, 0), last)
        found = g.GatherND(self.raw, g.Unsqueeze(place, [2]), batch_dims=1)
        is_position = g.GreaterOrEqual(g.Add(index, self.first), 0)
        return g.Where(g.Unsqueeze(is_position, [2]), found, g.CastLike(0.0, found))


@dataclass(frozen=True)
class _Heads:
    """n rows of a chunk, float32, ready for the rule.

    qk [B, Hk, 1, 2n, Dk] (queries, then keys), v [B, Hk, r, n, Dv], decay (its logarithm) and beta
    [B, Hk, r, n].
    """

    qk: ir.Value
    v: ir.Value
    decay: ir.Value
    beta: ir.Value


@dataclass(frozen=True)
class _Layer:
    """A layer's sizes, int64 [1] each, and weights; Hv / Hk value heads share a key head."""

    g: GraphBuilder
    key_heads: ir.Value
    key_dim: ir.Value
    value_dim: ir.Value
    conv_weight: ir.Value
    a_log: ir.Value
    dt_bias: ir.Value

    def heads(
        self, raw: ir.Value, history: ir.Value, taps: ir.Value, weight: ir.Value
    ) -> _Heads:
        """Return the heads of the last n of raw rows [B, Kc-1+n, C + 2·Hv].

        history is Kc-1; taps [Kc, n] is the row of each tap, weight [Kc, 1, C].
        """
        g = self.g
        channels = g.size(weight, 2)
        x = g.Slice(raw, [0], channels, [2])
        x = g.ReduceSum(g.Mul(g.Gather(x, taps, axis=1), weight), [1], keepdims=0)
        x = g.Mul(x, g.Sigmoid(x))  # [B, n, C]
        keys = g.Mul(g.Mul(self.key_heads, self.key_dim), 2)
        v = g.Reshape(
            g.Slice(x, keys, channels, [2]),
            g.Concat([0], [0], self.key_heads, [-1], self.value_dim, axis=0),
        )
        behind = g.Concat(history, channels, axis=0)
        gates = g.Slice(raw, behind, [2**31 - 1, 2**31 - 1], [1, 2])
        b, a = g.emit("Split", [gates], {"axis": 2, "num_outputs": 2}, num_outputs=2)
        decay = g.Mul(g.Neg(g.Exp(self.a_log)), g.Softplus(g.Add(a, self.dt_bias)))
        return _Heads(
            self._unit_heads(g.Slice(x, [0], keys, [2])),
            g.Transpose(v, perm=[0, 2, 3, 1, 4]),
            self._by_head(g.Max(decay, LOWEST_DECAY)),
            self._by_head(g.Sigmoid(b)),
        )

    def _unit_heads(self, x: ir.Value) -> ir.Value:
        """Return queries and keys [B, n, 2·Hk·Dk] at length 1, as [B, Hk, 1, 2n, Dk]."""
        g = self.g
        x = g.Reshape(x, g.Concat([0], [0], [2], self.key_heads, self.key_dim, axis=0))
        length = g.ReduceSum(g.Mul(x, x), [-1], keepdims=1)
        x = g.Mul(x, g.Reciprocal(g.Sqrt(g.Add(length, NORM_EPS))))
        by_key_head = g.Concat([0], [0], [1], [-1], self.key_dim, axis=0)
        return g.Reshape(g.Transpose(x, perm=[0, 3, 2, 1, 4]), by_key_head)

    def _by_head(self, x: ir.Value) -> ir.Value:
        """Return a number for each row and value head, [B, n, Hv], as [B, Hk, r, n]."""
        g = self.g
        by_key_head = g.Concat([0], self.key_heads, [-1], g.size(x, 1), axis=0)
        return g.Reshape(g.Transpose(x, perm=[0, 2, 1]), by_key_head)


@dataclass(frozen=True)
class _Rule:
    """The gated delta rule over `count` rows at once."""

    g: GraphBuilder
    count: int
    lower: ir.Value  # [n, n], 1 on and below the diagonal
    strict: ir.Value  # [n, n], 1 below it
    ends: ir.Value  # [1, 1, 1, n + 1, n]: lower, and a row of ones
    starts: ir.Value  # [n, n + 1]: a column of ones, and strict
    identity: ir.Value
    blocks: tuple[ir.Value, ...]  # for blocks of 1, 2, 4, … rows: those below the diagonal ones

    @classmethod
    def of(cls, g: GraphBuilder, count: int) -> _Rule:
        """Return the rule with the masks of `count` rows, a power of two, as constants."""
        ones = np.ones((count, count), np.float32)
        lower, strict = np.tril(ones), np.tril(ones, -1)
        row = np.arange(count)
        blocks, size = [], 1
        while size < count:
            block = row // size
            is_below = (block[:, None] % 2 == 1) & (block[:, None] - 1 == block[None, :])
            blocks.append(g.constant(is_below.astype(np.float32)))
            size *= 2
        return cls(
            g,
            count,
            lower=g.constant(lower),
            strict=g.constant(strict),
            ends=g.constant(np.concatenate([lower, ones[:1]])[None, None, None]),
            starts=g.constant(np.concatenate([ones[:, :1], strict], axis=1)),
            identity=g.constant(np.eye(count, dtype=np.float32)),
            blocks=tuple(blocks),
        )

    def __call__(
        self, heads: _Heads, kept: ir.Value, state: ir.Value
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Return the states behind all rows and behind the kept ones, and the rows' results.

        kept float32 [B, n], 1 for some first rows; state [B, Hk, r, Dk, Dv]; results
        [B, Hk, r, n, Dv], not yet scaled.
        """
        g = self.g
        n = self.count
        kept = g.Unsqueeze(kept, [1, 2, 3])  # [B, 1, 1, 1, n]
        decays = self._decays(heads.decay, kept)
        from_start = g.Slice(decays, [0, 0], [n, 1], [3, 4])
        between = g.Mul(g.Slice(decays, [0, 1], [n, n + 1], [3, 4]), self.lower)
        beta = g.Unsqueeze(heads.beta, [4])

        k = g.Slice(heads.qk, [n], [2 * n], [3])
        q_of_k, k_of_k = self._halves(g.MatMul(heads.qk, g.Transpose(k, perm=[0, 1, 2, 4, 3])))
        q_of_state, k_of_state = self._halves(g.MatMul(heads.qk, state))
        inverse = self._inverse(g.Mul(g.Mul(g.Mul(k_of_k, between), beta), self.strict))
        wanted = g.Mul(g.Sub(heads.v, g.Mul(k_of_state, from_start)), beta)
        u = g.MatMul(inverse, wanted)
        out = g.Add(g.Mul(q_of_state, from_start), g.MatMul(g.Mul(q_of_k, between), u))

        keys = g.Transpose(k, perm=[0, 1, 2, 4, 3])

        def behind(row: int, mask: ir.Value | None) -> ir.Value:
            """Return the state behind the rows of a mask, whose decays are in `row`."""
            of_state = g.Slice(decays, [row, 0], [row + 1, 1], [3, 4])
            weight = g.Slice(decays, [row, 1], [row + 1, n + 1], [3, 4])
            weight = weight if mask is None else g.Mul(weight, mask)
            weighted = g.Mul(u, g.Transpose(weight, perm=[0, 1, 2, 4, 3]))
            return g.Add(g.Mul(state, of_state), g.MatMul(keys, weighted))

        return behind(n, None), behind(n + 1, kept), out

    def _decays(self, decay: ir.Value, kept: ir.Value) -> ir.Value:
        """Return what is left of a state, [B, Hk, r, n + 2, n + 1].

        Columns: from the start, then from behind row j. Rows: to behind row i, to the end, to
        behind the last kept row. Each is e to a sum of just the decays between, so that nothing
        cancels.
        """
        g = self.g
        batch = g.Concat(g.size(kept, 0), [1, 1, 1, 1], axis=0)
        ends = g.Concat(g.Expand(self.ends, batch), kept, axis=3)
        return g.Exp(g.MatMul(g.Mul(ends, g.Unsqueeze(decay, [3])), self.starts))

    def _halves(self, x: ir.Value) -> tuple[ir.Value, ...]:
        """Return the first and the last n rows of x [B, Hk, r, 2n, …]."""
        n = self.count
        return self.g.emit("Split", [x, [n, n]], {"axis": 3}, num_outputs=2)

    def _inverse(self, n: ir.Value) -> ir.Value:
        """Return (I + n)^-1 of strictly lower triangular n [..., rows, rows].

        (A 0; C D)^-1 is (A^-1 0; -D^-1 C A^-1  D^-1), for all blocks of a size at once.
        """
        g = self.g
        inverse = self.identity
        for size, mask in enumerate(self.blocks):
            below = g.Mul(n, mask)
            if size:
                below = g.MatMul(g.MatMul(inverse, below), inverse)
            inverse = g.Sub(inverse, below)
        return inverse


def _body(
    g: GraphBuilder,
    qkv: ir.Value,
    gates: ir.Value,
    conv_weight: ir.Value,
    a_log: ir.Value,
    dt_bias: ir.Value,
    window: ir.Value,
    state: ir.Value,
    past_len: ir.Value,
    state_len: ir.Value,
    num_known: ir.Value,
) -> tuple[ir.Value, ...]:
    history = g.Sub(g.size(conv_weight, 2), 1)
    past, begin, known = (
        g.Unsqueeze(g.cast(length, _INT64), [1]) for length in (past_len, state_len, num_known)
    )
    open_rows = g.Sub(past, begin)
    num_kept = g.Add(open_rows, known)
    new = g.Concat(qkv, gates, axis=2)
    rows = _Rows(
        g,
        raw=g.Concat(g.Squeeze(window, [1]), new, axis=1),
        first=g.Sub(begin, history),
        step_begin=g.Add(open_rows, history),
        window_rows=g.size(window, 2),
    )
    key_heads = g.Unsqueeze(g.attribute(NUM_KEY_HEADS.name, NUM_KEY_HEADS.onnx_type), [0])
    layer = _Layer(
        g,
        key_heads,
        key_dim=g.size(state, 2),
        value_dim=g.size(state, 3),
        conv_weight=conv_weight,
        a_log=a_log,
        dt_bias=dt_bias,
    )

    # A slot that starts has the state 0, whatever stands in its memory.
    is_used = g.Unsqueeze(g.Greater(begin, 0), [2, 3])
    by_key_head = g.Concat([0], key_heads, [-1], g.Shape(state, start=2), axis=0)
    start = g.Reshape(g.Where(is_used, state, 0.0), by_key_head)
    num_rows = g.Add(g.Sub(rows.window_rows, history), g.size(qkv, 1))
    kept_state, out = _run(g, layer, rows, num_rows, num_kept, start)

    # A slot's own rows stand behind its open ones.
    own = g.Unsqueeze(g.Add(open_rows, g.arange(g.size(qkv, 1))), [2])
    scale = g.Reciprocal(g.Sqrt(g.cast(layer.key_dim, _FLOAT)))
    out = g.Mul(g.GatherND(out, own, batch_dims=1), scale)
    at_row_0 = g.Sub(g.cast(past_len, _INT64), g.cast(past_len, _INT64))
    moved = rows.take(g.Add(num_kept, g.arange(rows.window_rows)))
    return (
        g.CastLike(out, qkv),
        g.TensorScatter(window, g.Unsqueeze(moved, [1]), at_row_0, axis=2),
        g.TensorScatter(state, g.Reshape(kept_state, g.Shape(state)), at_row_0, axis=2),
    )


def _run(
    g: GraphBuilder,
    layer: _Layer,
    rows: _Rows,
    num_rows: ir.Value,
    num_kept: ir.Value,
    start: ir.Value,
) -> tuple[ir.Value, ir.Value]:
    """Return the state behind each slot's kept rows, and the results of all rows [B, N, Hv, Dv].

    num_rows int64 [1], num_kept int64 [B, 1]; start [B, Hk, r, Dk, Dv].
    """
    count = 1 if g.has_attribute(ROW_ORDER.name) else CHUNK_ROWS
    trips = g.Squeeze(g.Div(g.Add(num_rows, count - 1), count))
    history = g.Sub(g.size(layer.conv_weight, 2), 1)
    reach = g.Unsqueeze(g.arange(g.Add(history, count)), [0])
    taps = g.Add(g.Unsqueeze(g.arange(g.Add(history, 1)), [1]), list(range(count)))
    weight = g.cast(g.Transpose(layer.conv_weight, perm=[2, 1, 0]), _FLOAT)  # [Kc, 1, C]
    rule = _Rule.of(g, count)

    def chunk(iteration: ir.Value, running: ir.Value, kept: ir.Value) -> tuple[ir.Value, ...]:
        offset = g.Mul(iteration, count)
        heads = layer.heads(
            g.cast(rows.take(g.Add(offset, reach)), _FLOAT), history, taps, weight
        )
        is_kept = g.Less(g.Add(offset, list(range(count))), num_kept)  # [B, n]
        running, stopped, out = rule(heads, g.cast(is_kept, _FLOAT), running)
        any_kept = g.Unsqueeze(g.Less(offset, num_kept), [2, 3, 4])
        return running, g.Where(any_kept, stopped, kept), out

    _, kept, out = g.loop(trips, [start, start], chunk, num_stacked=1)
    out = g.Transpose(out, perm=[1, 0, 4, 2, 3, 5])  # from [trips, B, Hk, r, n, Dv]
    heads = g.size(layer.a_log, 0)
    return kept, g.Reshape(out, g.Concat([0], [-1], heads, layer.value_dim, axis=0))


GATED_DELTA = OpSpec(
    name="DFlashGatedDelta",
    meaning=(
        "Convolve the step's rows, bring the state to the position before them, run the gated delta"
        " rule over them."
    ),
    inputs=(
        Tensor("qkv", "T", "[B, S, C]", "raw, before the convolution"),
        Tensor("gates", "T", "[B, S, 2Hv]", "b, then a, raw"),
        Tensor("conv_weight", "T", "[C, 1, Kc]", "of each channel, the oldest row first"),
        Tensor("a_log", "float32", "[Hv]", "-exp(a_log) is the decay's slope"),
        Tensor("dt_bias", "float32", "[Hv]", "added to a"),
        Tensor(
            "window",
            "T",
            "[B, 1, R, C+2Hv]",
            "raw rows of the positions from state_len - (Kc-1) on; updated in place",
        ),
        Tensor("state", "float32", "[B, Hv, Dk, Dv]", "after state_len positions; in place"),
        Tensor("past_len", "int32", "[B]", "position of the step's first row"),
        Tensor(
            "state_len",
            "int32",
            "[B]",
            "positions in the state, past_len - (R - (Kc-1)) … past_len; 0: the state counts as 0",
        ),
        Tensor("num_known", "int32", "[B]", "rows of the step that are decided, 1 … S"),
    ),
    outputs=(
        Tensor("out", "T", "[B, S, Hv, Dv]", "before norm and gate"),
        Tensor(
            "window_out",
            "T",
            "[B, 1, R, C+2Hv]",
            "the memory of window: rows from past_len + num_known - (Kc-1) on",
            aliases="window",
        ),
        Tensor(
            "state_out",
            "float32",
            "[B, Hv, Dk, Dv]",
            "the memory of state: behind the last known row",
            aliases="state",
        ),
    ),
    attributes=(NUM_KEY_HEADS, ROW_ORDER),
    reference_body=_body,
    kernel=GATED_DELTA_KERNEL,
)
