"""Attention of CPU engines, written for ONNX Runtime: the meaning of DFlashVerifyAttention's body
in half its nodes.

The body takes rows of heads and turns them. Here the product of query, key and value is turned at
once, and stays by head up to the end:

    x ─ q, k, v ─ [B,H,S,D] ─┬─ rope ─┬─ q ──────────────── · kᵀ ─ mask, softmax ─ · v ─ rows
                             │        └─ k ─ cache ─ rows ──┘                      │
                             └─ v ───────── cache ─ rows ──────────────────────────┘

What all layers share is computed once: sizes, and the mask of each kind of layer.

ONNX Runtime multiplies one row with a kernel of its own, which adds up in another order than that
of several rows. A row alone comes up where each head has its own keys, and its bits would depend on
the drafts beside it. That kernel knows no factor. So a product whose rows may be one has a factor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from trtllm_dflash.graph.builder import OPS_DOMAIN, GraphBuilder
from trtllm_dflash.graph.ops import VERIFY_ATTENTION
from trtllm_dflash.graph.ops.attention import (
    KEY_SCALE,
    RING,
    SCALE,
    VALUE_SCALE,
    WINDOW,
    quantized,
    visible_rows,
    within_window,
)
from trtllm_dflash.graph.weight_only import RUNTIME_DOMAIN

_BY_HEAD = [0, 2, 1, 3]  # turns [B, S, H, D] into [B, H, S, D], and back
_SHARED = "attention"  # the scope of what all layers share
_HALF = 0.5  # a factor that costs no bits


def write_attention(model: ir.Model) -> None:
    """Put ONNX Runtime's own operators in the place of the target's attention."""
    graph = model.graph
    body = _Bodies(_InPlaceBuilder())
    for node in list(graph):
        if (node.domain, node.op_type) != (OPS_DOMAIN, VERIFY_ATTENTION.name):
            continue
        heads = _heads_of(node.inputs[0])
        if heads is None:
            continue
        results = body.attention(node, heads)
        graph.insert_before(node, body.g.nodes)
        body.g.nodes = []
        _replace(graph, node, results)
    RemoveUnusedNodesPass()(model)
    if not any(node.op_type == VERIFY_ATTENTION.name for node in graph):
        for key in [key for key in model.functions if key[1] == VERIFY_ATTENTION.name]:
            del model.functions[key]


class _InPlaceBuilder(GraphBuilder):
    """Writes a body into the graph itself; `fields` are the operator's attributes by name."""

    def __init__(self) -> None:
        super().__init__()
        self.fields: dict[str, Any] = {}

    @contextmanager
    def scope_of_all(self, name: str) -> Iterator[None]:
        """Prefix the names of nodes emitted inside with `name/` alone."""
        outer, self._scope = self._scope, [name]
        yield
        self._scope = outer

    def has_attribute(self, name: str) -> bool:
        return name in self.fields

    def attribute(self, name: str, onnx_type: ir.AttributeType) -> ir.Value:
        del onnx_type  # the field's own
        return self.as_value(self.fields[name])


@dataclass(frozen=True)
class _Joined:
    """The product of query, key and value [B·S, (Hq+2·Hkv)·D], and how a part of it is rotated."""

    product: ir.Value
    batch_and_width: ir.Value
    rotary: ir.Node


@dataclass
class _Bodies:
    """Writes the attention of all layers."""

    g: _InPlaceBuilder
    shared: dict[Any, ir.Value] = field(default_factory=dict)

    def attention(self, node: ir.Node, heads: int) -> tuple[ir.Value, ...]:
        """Return rows [B, S, Hq, D] and both caches, as the node's outputs."""
        g = self.g
        g.fields = {name: row.value for name, row in node.attributes.items()}
        q, k, v, key_cache, value_cache, positions, kv_positions, *sinks = _present(node)
        _, kv_heads, _, size = _sizes(key_cache)
        with g.scope(_scope_of(node)):
            q, k, v = self._by_head(q, k, v, heads, kv_heads, size)
            start = self._once(
                ("start", positions),
                lambda: g.Squeeze(g.Slice(positions, [0], [1], [1]), [1]),
            )
            mode = {"mode": "circular"} if g.has_attribute(RING.name) else {}
            keys, values = (
                g.TensorScatter(cache, quantized(g, rows, cache, scale), start, axis=2, **mode)
                for cache, rows, scale in (
                    (key_cache, k, KEY_SCALE),
                    (value_cache, v, VALUE_SCALE),
                )
            )
            out = self._attend(
                g.Reshape(q, [0, kv_heads, -1, size]),
                (keys, values),
                self._mask(positions, kv_positions, key_cache, heads // kv_heads),
                (positions, kv_positions),
                sinks,
                heads,
            )
        return out, keys, values

    def _by_head(
        self,
        q: ir.Value,
        k: ir.Value,
        v: ir.Value,
        heads: int,
        kv_heads: int,
        size: int,
    ) -> tuple[ir.Value, ...]:
        """Return queries, keys and values [B, H, S, D] of those [B, S, H, D]."""
        g = self.g
        joined = _joined(q, k, v)
        if joined is None:
            q, k, v = (g.Transpose(x, perm=_BY_HEAD) for x in (q, k, v))
            return q, k, v
        every = heads + 2 * kv_heads
        shape = self._once(
            ("shape", joined.batch_and_width, every, size),
            lambda: g.Concat(joined.batch_and_width, [every, size], axis=0),
        )
        turned = g.Transpose(g.Reshape(joined.product, shape), perm=_BY_HEAD)
        sizes = [heads + kv_heads, kv_heads]
        rotated, v = g.emit("Split", [turned, sizes], {"axis": 1}, num_outputs=2)
        rotary = joined.rotary
        part = {
            name: row.value for name, row in rotary.attributes.items() if name != "num_heads"
        }
        rotated = g.emit("RotaryEmbedding", [rotated, *rotary.inputs[1:]], part)[0]
        sizes = [heads, kv_heads]
        q, k = g.emit("Split", [rotated, sizes], {"axis": 1}, num_outputs=2)
        return q, k, v

    def _mask(
        self, positions: ir.Value, kv_positions: ir.Value, cache: ir.Value, group: int
    ) -> ir.Value:
        """Return 0 for what the rows of a key head see, else -infinity, [B, 1, G·S, L].

        A sum costs ONNX Runtime a third of a choice between two.
        """
        g = self.g

        def make() -> ir.Value:
            first = g.Slice(positions, [0], [1], [1])
            _, held = visible_rows(g, kv_positions, cache, first, g.size(positions, 1))
            distance = g.Sub(g.Unsqueeze(positions, [1, 2, 4]), held)
            seen = g.And(g.GreaterOrEqual(distance, 0), within_window(g, distance))
            mask: ir.Value = g.Where(g.Squeeze(seen, [2]), 0.0, float("-inf"))
            if group == 1:
                return mask
            return g.Reshape(g.Expand(mask, [1, group, 1, 1]), [0, 1, -1, 0])

        ring = (g.fields.get(RING.name), _sizes(cache)[2])
        return self._once(("mask", positions, g.fields[WINDOW.name], ring, group), make)

    def _attend(
        self,
        stacked: ir.Value,
        caches: tuple[ir.Value, ir.Value],
        mask: ir.Value,
        positions: tuple[ir.Value, ir.Value],
        sinks: list[ir.Value],
        heads: int,
    ) -> ir.Value:
        """Return rows [B, S, Hq, D] of queries [B, Hkv, G·S, D] over the caches' first rows."""
        g = self.g
        _, kv_heads, _, size = _sizes(caches[0])
        (own, every) = positions
        length = self._once(("length", every), lambda: g.size(every, 0))
        k, v = (g.Slice(cache, [0], length, [2]) for cache in caches)
        if g.has_attribute(KEY_SCALE.name):
            k, v = g.CastLike(k, stacked), g.CastLike(v, stacked)
        scale = float(g.fields[SCALE.name])
        single = kv_heads == heads
        scores = self._product(stacked, k, scale, single, transB=1)
        if g.has_attribute(KEY_SCALE.name):
            scores = g.Mul(scores, g.attribute(KEY_SCALE.name, KEY_SCALE.onnx_type))
        scores = g.Add(scores, mask)
        if sinks:
            weights = self._softmax_with_sinks(scores, sinks[0], own, heads, kv_heads)
        else:
            weights = g.Softmax(scores, axis=-1)
        out = self._product(weights, v, 1.0, single)
        if g.has_attribute(VALUE_SCALE.name):
            out = g.Mul(out, g.attribute(VALUE_SCALE.name, VALUE_SCALE.onnx_type))
        return g.Transpose(g.Reshape(out, [0, heads, -1, size]), perm=_BY_HEAD)

    def _product(
        self, x: ir.Value, y: ir.Value, scale: float, single: bool, **options: int
    ) -> ir.Value:
        """Return scale · x y, or x yᵀ; `single`: x may be of one row.

        A product by two would be fused into a factor of one again.
        """
        g = self.g
        halved = single and scale == 1.0
        given: dict[str, Any] = options | {"alpha": _HALF if halved else scale}
        product = g.emit("FusedMatMul", [x, y], given, domain=RUNTIME_DOMAIN)[0]
        return g.Add(product, product) if halved else product

    def _softmax_with_sinks(
        self, scores: ir.Value, sinks: ir.Value, positions: ir.Value, heads: int, kv_heads: int
    ) -> ir.Value:
        """Return the softmax of scores [B, Hkv, G·S, L] with one more logit for each head."""
        g = self.g
        sizes = self._once(
            ("sinks", positions),
            lambda: g.Concat(g.size(positions, 0), [1, 1], g.size(positions, 1), axis=0),
        )
        column = g.Expand(g.Reshape(sinks, [1, kv_heads, heads // kv_heads, 1]), sizes)
        column = g.Reshape(column, [0, kv_heads, -1, 1])
        weights = g.Softmax(g.Concat(scores, column, axis=-1), axis=-1)
        return g.Slice(weights, [0], [-1], [3])

    def _once(self, key: Any, make: Callable[[], ir.Value]) -> ir.Value:
        """Return what layers share; its nodes are in the scope of none."""
        if key not in self.shared:
            with self.g.scope_of_all(_SHARED):
                self.shared[key] = make()
        return self.shared[key]


def _heads_of(value: ir.Value | None) -> int | None:
    """Return H of a value [B, S, H, D] that was shaped so, None for any other."""
    shaped = _made_by(value, "Reshape")
    shape = _made_by(shaped.inputs[1], "Concat") if shaped else None
    sizes = _made_by(shape.inputs[-1], "Constant") if shape else None
    if sizes is None or "value_ints" not in sizes.attributes:
        return None
    return int(sizes.attributes["value_ints"].as_ints()[0])


def _joined(q: ir.Value, k: ir.Value, v: ir.Value) -> _Joined | None:
    """Return the product that all three are parts of, rotated but not normed; None if it is not.

    q, k ← Reshape ← RotaryEmbedding ← Reshape ← Split;  v ← Reshape ← Split
    """
    parts, rotaries, shapes = [], [], []
    for value in (q, k):
        shaped = _made_by(value, "Reshape")
        rotary = _made_by(shaped.inputs[0], "RotaryEmbedding") if shaped else None
        given = _made_by(rotary.inputs[0], "Reshape") if rotary else None
        if rotary is None or given is None:
            return None
        rotaries.append(rotary)
        parts.append(given.inputs[0])
    shaped = _made_by(v, "Reshape")
    shape = _made_by(shaped.inputs[1], "Concat") if shaped else None
    if shaped is None or shape is None:
        return None
    parts.append(shaped.inputs[0])
    shapes.append(shape.inputs[0])
    split = _made_by(parts[0], "Split")
    if split is None or list(split.outputs) != parts:
        return None
    first, second = rotaries
    if first.inputs[1:] != second.inputs[1:] or split.inputs[0] is None or shapes[0] is None:
        return None
    return _Joined(split.inputs[0], shapes[0], first)


def _made_by(value: ir.Value | None, op_type: str) -> ir.Node | None:
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op_type else None


def _present(node: ir.Node) -> list[ir.Value]:
    return [value for value in node.inputs if value is not None]


def _sizes(cache: ir.Value) -> tuple[int, ...]:
    """Return -1, Hkv, the rows and D of a cache, whose sizes are those of the graph's input."""
    while cache.shape is None:
        node = cache.producer()
        assert node is not None
        assert node.inputs[0] is not None
        cache = node.inputs[0]
    return tuple(size if isinstance(size, int) else -1 for size in cache.shape)


def _scope_of(node: ir.Node) -> str:
    """Return the scope for what stands in a node's place: its own name, which is unique."""
    return str(node.name).strip("/")


def _replace(graph: ir.Graph, node: ir.Node, results: tuple[ir.Value, ...]) -> None:
    """Let results have the names, types and users of a node's outputs, and remove it."""
    for old, new in zip(node.outputs, results, strict=True):
        name = old.name
        new.type, new.shape = old.type, old.shape
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        old.name = None
        new.name = name
    graph.remove(node, safe=True)
