"""What the two attention operators share: the body of masked attention over the first rows of a
cache.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from trtllm_dflash.graph.builder import GraphBuilder
from trtllm_dflash.graph.kernel_specs import KernelType
from trtllm_dflash.graph.ops.spec import Attribute, Tensor

SCALE = Attribute("scale", 1.0, "multiplies query · key, usually head_dim^-0.5")
WINDOW = Attribute(
    "window_size",
    0,
    "keys further away than this are not seen, the query's own counted; 0: no window",
)

_FP8_CACHE_MEANING = (
    "a code of {0}_cache stands for {1} times its number; left out: the cache holds {0}s as"
    " they are"
)
KEY_SCALE = Attribute(
    "key_scale", 0.0, _FP8_CACHE_MEANING.format("key", "key_scale"), optional=True
)
VALUE_SCALE = Attribute(
    "value_scale", 0.0, _FP8_CACHE_MEANING.format("value", "value_scale"), optional=True
)
RING = Attribute(
    "ring",
    0,
    "1: position p is in row p mod cache_len, which is at least window_size - 1 + the step's rows;"
    " 0: in row p",
    optional=True,
)
_QUANTIZED = ir.DataType.FLOAT8E4M3FN

_CACHES = ("key_cache", "value_cache")
SINKS = Tensor(
    "sinks", "T", "[Hq]", "a logit for each head in the softmax denominator only", optional=True
)
FP8_CACHE = KernelType("fp8_cache", "C", "float8e4m3fn")


def caches(dtype: str) -> tuple[Tensor, ...]:
    """Return the inputs that hold the keys and values of earlier steps."""
    return tuple(
        Tensor(name, dtype, "[B, Hkv, cache_len, D]", "updated in place") for name in _CACHES
    )


def cache_outputs(dtype: str) -> tuple[Tensor, ...]:
    """Return the outputs of the caches."""
    shape = "[B, Hkv, cache_len, D]"
    return tuple(
        Tensor(f"{name}_out", dtype, shape, f"the memory of {name}", aliases=name)
        for name in _CACHES
    )


def kv_positions(reach: str) -> Tensor:
    """Return the input whose length is that of the keys; `reach` says how far it must go."""
    return Tensor("kv_positions", "int64", "[L]", f"0 … L-1, L > {reach}", body_only=True)


def ring_attribute(rings: Sequence[int], layer: int) -> dict[str, int]:
    """Return the ring attribute of a layer's node; none if no layer of the model has a ring."""
    return {RING.name: rings[layer]} if rings else {}


def within_window(g: GraphBuilder, distance: ir.Value) -> ir.Value:
    """True where a position `distance` away is inside the function's window_size (or there is no
    window).
    """
    window = g.attribute(WINDOW.name, WINDOW.onnx_type)
    return g.Or(g.Equal(window, 0), g.Less(distance, window))


def quantized(g: GraphBuilder, rows: ir.Value, cache: ir.Value, scale: Attribute) -> ir.Value:
    """Return the rows as the cache holds them: FP8(rows / scale) if the function has a scale.

    A code is a number, so that a cache of any type can hold it; ONNX Runtime has no TensorScatter
    of FP8. Rounded to the nearest, ties to even, and saturated at 448.
    """
    if not g.has_attribute(scale.name):
        return rows
    ratio = g.Div(g.cast(rows, ir.DataType.FLOAT), g.attribute(scale.name, scale.onnx_type))
    return g.CastLike(g.Cast(ratio, to=int(_QUANTIZED), saturate=1), cache)


def write(g: GraphBuilder, cache: ir.Value, rows: ir.Value, start: ir.Value) -> ir.Value:
    """Write rows [B, N, Hkv, D] into cache [B, Hkv, cache_len, D] from position start [B] on, in
    place.
    """
    mode = {"mode": "circular"} if g.has_attribute(RING.name) else {}
    return g.TensorScatter(cache, g.Transpose(rows, perm=[0, 2, 1, 3]), start, axis=2, **mode)


def visible_rows(
    g: GraphBuilder, kv_positions: ir.Value, cache: ir.Value, start: ir.Value, count: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """Return the cache's rows that attention looks at [L], and the position that each holds [L], in
    rings [B, 1, 1, 1, L].

    Where the function has the attribute `ring`, caches may be rings. `count` [1] rows, N, have just
    been written from position start [B, 1] on. A row of a ring then holds the largest position
    congruent to it before start + N. A row that holds none yet counts as the position start + N,
    which is hidden from all. A cache of cache_len rows is a ring that never comes round.
    """
    if not g.has_attribute(RING.name):
        return kv_positions, kv_positions
    size = g.size(cache, 2)
    rows = g.Slice(kv_positions, [0], size, [0])
    end = g.Add(start, count)
    last = g.Sub(end, 1)
    held = g.Sub(last, g.Mod(g.Sub(last, rows), size))
    return rows, g.Unsqueeze(g.Where(g.Less(held, 0), end, held), [1, 2, 3])


def attend(
    g: GraphBuilder,
    q: ir.Value,
    keys: ir.Value,
    values: ir.Value,
    visible: ir.Value,
    kv_positions: ir.Value,
    rows: ir.Value,
    sinks: ir.Value | None,
    key_cache: ir.Value,
) -> ir.Value:
    """softmax(scale · q kᵀ where visible, and the head's sink) v over the first L rows of the
    caches.

    q [B, S, Hq, D], keys and values [B, Hkv, cache_len, D], visible bool [B, 1, 1, S, L],
    kv_positions [L], sinks [Hq]. `rows` [1] is S, or 1 where S is 0: the result is empty then.
    Where the function has key_scale and value_scale, keys and values are codes, and the scales join
    the scores and the result. Sizes are read from what all layers share, and from key_cache, whose
    sizes are known: ONNX Runtime then computes them once. The query heads of a key head are stacked
    as rows, so that its keys are read once:

        q [B,S,Hq,D] ─► [B,Hkv,G·S,D] ─ · kᵀ ─► [B,Hkv,G,S,L] ─ mask, softmax ─► [B,Hkv,G·S,L] ─ · v
        ─► [B,S,Hq,D]
    """
    length = g.size(kv_positions, 0)
    kv_heads = g.size(key_cache, 1)
    stacked = g.Reshape(
        g.Transpose(q, perm=[0, 2, 1, 3]), g.Concat([0], kv_heads, [-1], [0], axis=0)
    )
    k, v = (g.Slice(cache, [0], length, [2]) for cache in (keys, values))
    if g.has_attribute(KEY_SCALE.name):
        k, v = g.CastLike(k, q), g.CastLike(v, q)
    scores = g.MatMul(stacked, g.Transpose(k, perm=[0, 1, 3, 2]))
    scores = g.Reshape(
        g.cast(scores, ir.DataType.FLOAT), g.Concat([0, 0, -1], rows, length, axis=0)
    )
    scores = g.Mul(scores, g.attribute(SCALE.name, SCALE.onnx_type))
    if g.has_attribute(KEY_SCALE.name):
        scores = g.Mul(scores, g.attribute(KEY_SCALE.name, KEY_SCALE.onnx_type))
    scores = g.Where(visible, scores, float("-inf"))
    weights = (
        g.Softmax(scores, axis=-1) if sinks is None else _softmax_with_sinks(g, scores, sinks)
    )
    weights = g.Reshape(g.CastLike(weights, v), g.Concat([0, 0, -1], length, axis=0))
    out = g.MatMul(weights, v)
    if g.has_attribute(VALUE_SCALE.name):
        out = g.Mul(out, g.CastLike(g.attribute(VALUE_SCALE.name, VALUE_SCALE.onnx_type), out))
    out = g.Reshape(out, g.Concat([0, -1], rows, g.size(key_cache, 3), axis=0))
    return g.Transpose(out, perm=[0, 2, 1, 3])


def _softmax_with_sinks(g: GraphBuilder, scores: ir.Value, sinks: ir.Value) -> ir.Value:
    """Softmax over the last axis and one more logit for each head; scores [B, Hkv, G, S, L], sinks
    [Hq]. Without rows scores are [B, Hkv, 0, 1, L], and so no sink is taken.
    """
    by_head = g.Reshape(
        g.cast(sinks, ir.DataType.FLOAT), g.Concat(g.size(scores, 1), [-1, 1, 1], axis=0)
    )
    by_head = g.Slice(by_head, [0], g.size(scores, 2), [1])
    column = g.Expand(by_head, g.Concat(g.Shape(scores, end=4), [1], axis=0))
    weights = g.Softmax(g.Concat(scores, column, axis=-1), axis=-1)
    return g.Slice(weights, [0], g.size(scores, -1), [-1])
