"""What the two attention operators share: the body of masked attention over the first rows of a cache."""

from __future__ import annotations

import onnx_ir as ir

from trtllm_dflash.graph.builder import GraphBuilder
from trtllm_dflash.graph.ops.spec import Attribute, Kernel, KernelSize, Tensor

SCALE = Attribute("scale", 1.0, "multiplies query · key, usually head_dim^-0.5")
WINDOW = Attribute("window_size", 0, "keys further away than this are not seen, the query's own counted; 0: no window")

CACHES = (
    Tensor("key_cache", "T", "[B, Hkv, cache_len, D]", "updated in place"),
    Tensor("value_cache", "T", "[B, Hkv, cache_len, D]", "updated in place"),
)
CACHE_OUTPUTS = (
    Tensor("key_cache_out", "T", "[B, Hkv, cache_len, D]", "the memory of key_cache", aliases="key_cache"),
    Tensor("value_cache_out", "T", "[B, Hkv, cache_len, D]", "the memory of value_cache", aliases="value_cache"),
)
SINKS = Tensor("sinks", "T", "[Hq]", "a logit for each head that takes weight and gives nothing", optional=True)
KERNEL = Kernel("attention", "bfloat16", (KernelSize("head_dim", "D", (64, 96, 128, 256)),))


def kv_positions(reach: str) -> Tensor:
    """The input whose length is that of the keys; `reach` says how far it must go."""
    return Tensor("kv_positions", "int64", "[L]", f"0 … L-1, L > {reach}", body_only=True)


def within_window(g: GraphBuilder, distance: ir.Value) -> ir.Value:
    """True where a position `distance` away is inside the function's window_size (or there is no window)."""
    window = g.attribute(WINDOW.name, WINDOW.kind)
    return g.Or(g.Equal(window, 0), g.Less(distance, window))


def write(g: GraphBuilder, cache: ir.Value, rows: ir.Value, start: ir.Value) -> ir.Value:
    """Write rows [B, N, Hkv, D] into cache [B, Hkv, cache_len, D] from position start [B] on, in place."""
    return g.TensorScatter(cache, g.Transpose(rows, perm=[0, 2, 1, 3]), start, axis=2)


def attend(
    g: GraphBuilder,
    q: ir.Value,
    keys: ir.Value,
    values: ir.Value,
    visible: ir.Value,
    kv_positions: ir.Value,
    sinks: ir.Value | None,
) -> ir.Value:
    """softmax(scale · q kᵀ where visible, and the head's sink) v over the first L rows of the caches.

    q [B, S, Hq, D], keys and values [B, Hkv, cache_len, D], visible bool [B, 1, 1, S, L], kv_positions [L], sinks [Hq].
    The query heads of a key head are stacked as rows, so that its keys are read once:

        q [B,S,Hq,D] ─► [B,Hkv,G·S,D] ─ · kᵀ ─► [B,Hkv,G,S,L] ─ mask, softmax ─► [B,Hkv,G·S,L] ─ · v ─► [B,S,Hq,D]
    """
    length, rows, kv_heads = g.size(kv_positions, 0), g.size(q, 1), g.size(keys, 1)
    stacked = g.Reshape(g.Transpose(q, perm=[0, 2, 1, 3]), g.Concat([0], kv_heads, [-1], [0], axis=0))
    k = g.Slice(keys, [0], length, [2])
    v = g.Slice(values, [0], length, [2])
    scores = g.MatMul(stacked, g.Transpose(k, perm=[0, 1, 3, 2]))
    scores = g.Reshape(g.cast(scores, ir.DataType.FLOAT), g.Concat([0, 0, -1], rows, length, axis=0))
    scores = g.Mul(scores, g.attribute(SCALE.name, SCALE.kind))
    scores = g.Where(visible, scores, float("-inf"))
    weights = g.Softmax(scores, axis=-1) if sinks is None else _softmax_with_sinks(g, scores, sinks)
    weights = g.Reshape(g.CastLike(weights, v), g.Concat([0, 0, -1], length, axis=0))
    out = g.Reshape(g.MatMul(weights, v), g.Concat([0, -1], rows, g.size(q, 3), axis=0))
    return g.Transpose(out, perm=[0, 2, 1, 3])


def _softmax_with_sinks(g: GraphBuilder, scores: ir.Value, sinks: ir.Value) -> ir.Value:
    """Softmax over the last axis and one more logit for each head; scores [B, Hkv, G, S, L], sinks [Hq]."""
    by_head = g.Reshape(g.cast(sinks, ir.DataType.FLOAT), g.Concat(g.size(scores, 1), [-1, 1, 1], axis=0))
    column = g.Expand(by_head, g.Concat(g.Shape(scores, end=4), [1], axis=0))
    weights = g.Softmax(g.Concat(scores, column, axis=-1), axis=-1)
    return g.Slice(weights, [0], g.size(scores, -1), [-1])
