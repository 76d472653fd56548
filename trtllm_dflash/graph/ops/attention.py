"""What the two attention operators share: the body of masked attention over the first rows of a cache."""

from __future__ import annotations

import onnx_ir as ir

from trtllm_dflash.graph.builder import GraphBuilder
from trtllm_dflash.graph.ops.spec import Attribute, Tensor

SCALE = Attribute("scale", 1.0, "multiplies query · key, usually head_dim^-0.5")
WINDOW = Attribute("window_size", 0, "keys further away than this are not seen, the query's own counted; 0: no window")

CACHES = (
    Tensor("key_cache", "T", "[B, Hkv, cache_len, D]", "updated in place"),
    Tensor("value_cache", "T", "[B, Hkv, cache_len, D]", "updated in place"),
)
OUTPUTS = (
    Tensor("out", "T", "[B, S, Hq, D]", "attention output"),
    Tensor("key_cache_out", "T", "[B, Hkv, cache_len, D]", "the memory of key_cache"),
    Tensor("value_cache_out", "T", "[B, Hkv, cache_len, D]", "the memory of value_cache"),
)


def within_window(g: GraphBuilder, distance: ir.Value) -> ir.Value:
    """True where a position `distance` away is inside the function's window_size (or there is no window)."""
    window = g.attribute(WINDOW.name, WINDOW.kind)
    return g.Or(g.Equal(window, 0), g.Less(distance, window))


def write(g: GraphBuilder, cache: ir.Value, rows: ir.Value, start: ir.Value) -> ir.Value:
    """Write rows [B, N, Hkv, D] into cache [B, Hkv, cache_len, D] from position start [B] on, in place."""
    return g.TensorScatter(cache, g.Transpose(rows, perm=[0, 2, 1, 3]), start, axis=2)


def attend(
    g: GraphBuilder, q: ir.Value, keys: ir.Value, values: ir.Value, visible: ir.Value, kv_positions: ir.Value
) -> ir.Value:
    """softmax(scale · q kᵀ where visible) v over the first L rows of the caches.

    q [B, S, Hq, D], keys and values [B, Hkv, cache_len, D], visible bool [B, 1, 1, S, L], kv_positions [L].
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
    weights = g.Softmax(g.Where(visible, scores, float("-inf")), axis=-1)
    weights = g.Reshape(g.CastLike(weights, v), g.Concat([0, 0, -1], length, axis=0))
    out = g.Reshape(g.MatMul(weights, v), g.Concat([0, -1], rows, g.size(q, 3), axis=0))
    return g.Transpose(out, perm=[0, 2, 1, 3])
