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

The body takes rows in chunks, in closed form (`ops.delta_rule`).

Memory: one buffer may be bound to an input and its output. ONNX Runtime then writes the output as
soon as it has the values, whoever else still reads the input. Window and state are therefore
written whole, from values that depend on all that is read.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from trtllm_dflash.graph.builder import GraphBuilder
from trtllm_dflash.graph.kernel_specs import DELTA_CHUNK_ROWS, GATED_DELTA_KERNEL
from trtllm_dflash.graph.ops.delta_rule import END, DeltaRule, Heads
from trtllm_dflash.graph.ops.spec import Attribute, OpSpec, Tensor

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
FOR_CPU = Attribute(
    "for_cpu",
    0,
    "1: the body is quick in ONNX Runtime: chunks have no more rows than there are; left out: sizes"
    " are fixed, which TensorRT compiles in less time",
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
    ) -> Heads:
        """Return the heads of the last n of raw rows [B, Kc-1+n, C + 2·Hv].

        history is Kc-1; taps [Kc, n] is the row of each tap, weight [Kc, 1, C].
        """
        g = self.g
        channels = g.size(weight, 2)
        x = g.Slice(raw, [0], channels, [2])
        x = self._sum_of_taps(g.Mul(g.Gather(x, taps, axis=1), weight))
        x = g.Mul(x, g.Sigmoid(x))  # [B, n, C]
        keys = g.Mul(g.Mul(self.key_heads, self.key_dim), 2)
        v = g.Reshape(
            g.Slice(x, keys, channels, [2]),
            g.Concat([0], [0], self.key_heads, [-1], self.value_dim, axis=0),
        )
        behind = g.Concat(history, channels, axis=0)
        gates = g.Slice(raw, behind, [END, END], [1, 2])
        b, a = g.emit("Split", [gates], {"axis": 2, "num_outputs": 2}, num_outputs=2)
        decay = g.Mul(g.Neg(g.Exp(self.a_log)), g.Softplus(g.Add(a, self.dt_bias)))
        return Heads(
            self._unit_heads(g.Slice(x, [0], keys, [2])),
            g.Transpose(v, perm=[0, 2, 3, 1, 4]),
            self._by_head(g.Max(decay, LOWEST_DECAY)),
            self._by_head(g.Sigmoid(b)),
        )

    def _sum_of_taps(self, x: ir.Value) -> ir.Value:
        """Return the sum over the taps of x [B, Kc, n, C], as [B, n, C]."""
        g = self.g
        if not g.has_attribute(FOR_CPU.name):
            return g.ReduceSum(x, [1], keepdims=0)
        # ONNX Runtime's ReduceSum takes four times as long.
        ones = g.Expand(1.0, g.Concat([1], g.size(self.conv_weight, 2), axis=0))
        total = g.MatMul(ones, g.Reshape(x, [0, 0, -1]))
        return g.Reshape(total, g.Concat([0], g.Shape(x, start=2), axis=0))

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
    limit = 1 if g.has_attribute(ROW_ORDER.name) else DELTA_CHUNK_ROWS
    count = g.as_value([limit])
    if g.has_attribute(FOR_CPU.name):
        count = g.Min(num_rows, count)
    trips = g.Squeeze(g.Div(g.Add(num_rows, g.Sub(count, 1)), count))
    history = g.Sub(g.size(layer.conv_weight, 2), 1)
    chunk_rows = g.arange(count)
    reach = g.Unsqueeze(g.arange(g.Add(history, count)), [0])
    taps = g.Add(g.Unsqueeze(g.arange(g.Add(history, 1)), [1]), chunk_rows)
    weight = g.cast(g.Transpose(layer.conv_weight, perm=[2, 1, 0]), _FLOAT)  # [Kc, 1, C]
    rule = DeltaRule.of(g, count, limit)

    def chunk(iteration: ir.Value, running: ir.Value, kept: ir.Value) -> tuple[ir.Value, ...]:
        offset = g.Mul(iteration, count)
        heads = layer.heads(
            g.cast(rows.take(g.Add(offset, reach)), _FLOAT), history, taps, weight
        )
        is_kept = g.Less(g.Add(offset, chunk_rows), num_kept)  # [B, n]
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
    attributes=(NUM_KEY_HEADS, ROW_ORDER, FOR_CPU),
    reference_body=_body,
    kernel=GATED_DELTA_KERNEL,
)
