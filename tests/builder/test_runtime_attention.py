"""Attention as CPU engines have it: the body's numbers, and rows whose bits depend on no other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

onnxruntime = pytest.importorskip("onnxruntime")

from trtllm_dflash.builder.runtime_attention import write_attention
from trtllm_dflash.graph.builder import OPS_DOMAIN, OPSET, GraphBuilder
from trtllm_dflash.graph.layers import Rotary
from trtllm_dflash.graph.ops import VERIFY_ATTENTION
from trtllm_dflash.graph.weight_only import RUNTIME_DOMAIN
from trtllm_dflash.runtime.sessions.base import CONTEXT_BUCKET

SIZE, ROWS, PAST, WIDTH = 8, 2 * CONTEXT_BUCKET, 19, 5
FLOAT, INT64 = ir.DataType.FLOAT, ir.DataType.INT64


@dataclass(frozen=True)
class Layer:
    """Heads, key heads, and what a layer may have."""

    heads: int
    kv_heads: int
    window: int = 0
    sinks: bool = False
    ring: bool = False
    scales: tuple[float, float] | None = None
    joined: bool = True  # query, key and value are parts of one product
    scale: float = 0.3


CASES = {
    "grouped": Layer(6, 2),
    "a head of its own keys": Layer(3, 3),
    "its own keys, scale 1": Layer(3, 3, scale=1.0),
    "one key head": Layer(3, 1, window=7),
    "apart": Layer(6, 2, joined=False),
    "window": Layer(6, 2, window=7),
    "sinks": Layer(6, 2, sinks=True),
    "ring": Layer(6, 2, window=7, ring=True),
    "codes": Layer(6, 2, scales=(0.5, 0.25)),
    "everything": Layer(3, 3, window=7, sinks=True, ring=True, scales=(0.5, 0.25)),
}


def _model(layer: Layer) -> ir.Model:
    """Return attention of x [B, S, all heads·D] from a product's split to rows."""
    g = GraphBuilder()
    every = layer.heads + 2 * layer.kv_heads
    rows = PAST + WIDTH - 7 if layer.ring else ROWS
    cache = ir.Shape(["B", layer.kv_heads, rows, SIZE])
    kinds = {
        "x": (FLOAT, ir.Shape(["N", every * SIZE])),
        "positions": (INT64, ir.Shape(["B", "S"])),
        "kv_positions": (INT64, ir.Shape(["L"])),
        "keys": (FLOAT, cache),
        "values": (FLOAT, cache),
        "sinks": (FLOAT, ir.Shape([layer.heads])),
    }
    inputs = {
        name: ir.Value(name=name, shape=shape, type=ir.TensorType(dtype))
        for name, (dtype, shape) in kinds.items()
    }
    both = g.Shape(inputs["positions"])
    angles = np.outer(np.arange(ROWS), [1.0, 0.5, 0.25, 0.125]).astype(np.float32)
    tables = {"cos": np.cos(angles), "sin": np.sin(angles)}
    cos, sin = (g.initializer(key, lambda a=a: ir.Tensor(a)) for key, a in tables.items())
    rotary = Rotary(g, cos, sin, FLOAT)
    x = inputs["x"] if layer.joined else g.Mul(inputs["x"], 1.0)
    sizes = [layer.heads * SIZE, layer.kv_heads * SIZE, layer.kv_heads * SIZE]
    q, k, v = g.emit("Split", [x, sizes], {"axis": 1}, num_outputs=3)
    if not layer.joined:
        q = g.Mul(q, 1.0)
    positions = inputs["positions"]
    q = rotary(q, positions, both, (layer.heads, SIZE))
    k = rotary(k, positions, both, (layer.kv_heads, SIZE))
    v = g.Reshape(v, g.Concat(both, [layer.kv_heads, SIZE], axis=0))
    options: dict[str, Any] = {"scale": layer.scale, "window_size": layer.window}
    options |= {"ring": 1} if layer.ring else {}
    if layer.scales:
        options |= dict(zip(("key_scale", "value_scale"), layer.scales, strict=True))
    operands = [q, k, v, inputs["keys"], inputs["values"], positions, inputs["kv_positions"]]
    operands += [inputs["sinks"]] if layer.sinks else []
    outputs = VERIFY_ATTENTION(g, *operands, **options)
    out = g.Reshape(outputs[0], [-1, layer.heads * SIZE])
    for name, value in zip(("out", "keys.out", "values.out"), (out, *outputs[1:]), strict=True):
        value.name, value.type = name, ir.TensorType(FLOAT)
        value.shape = cache if name != "out" else ir.Shape(["N", layer.heads * SIZE])
    graph = ir.Graph(
        list(inputs.values()),
        [out, *outputs[1:]],
        nodes=g.nodes,
        initializers=list(g.initializers.values()),
        opset_imports={"": OPSET, OPS_DOMAIN: 1, RUNTIME_DOMAIN: 1},
        name="attention",
    )
    functions = VERIFY_ATTENTION.functions(g.nodes)
    return ir.Model(graph, ir_version=11, functions=functions)


def _session(layer: Layer, *, written: bool) -> Any:
    model = _model(layer)
    if written:
        write_attention(model)
        assert not any(node.domain == OPS_DOMAIN for node in model.graph)
        assert not model.functions
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)


def _answer(
    session: Any, layer: Layer, x: np.ndarray, first: int, keys: list[np.ndarray]
) -> list[np.ndarray]:
    """Return rows, keys and values behind x [B, S, all heads·D] at positions from `first` on."""
    batch, width, _ = x.shape
    positions = np.tile(np.arange(first, first + width), (batch, 1))
    given = {
        "x": x.reshape(batch * width, -1),
        "positions": positions,
        "kv_positions": np.arange(CONTEXT_BUCKET),
        "keys": keys[0],
        "values": keys[1],
    }
    given["sinks"] = np.linspace(-1, 1, layer.heads).astype(np.float32)
    rows, *after = session.run(["out", "keys.out", "values.out"], given)
    return [rows.reshape(batch, width, -1), *after]


def _inputs(layer: Layer, batch: int) -> tuple[np.ndarray, list[np.ndarray]]:
    rng = np.random.default_rng(layer.heads)
    every = layer.heads + 2 * layer.kv_heads
    rows = PAST + WIDTH - 7 if layer.ring else ROWS
    x = rng.standard_normal((batch, WIDTH, every * SIZE)).astype(np.float32)
    shape = (batch, layer.kv_heads, rows, SIZE)
    return x, [rng.standard_normal(shape).astype(np.float32) for _ in range(2)]


@pytest.mark.parametrize("name", CASES)
def test_written_attention_gives_the_bodys_numbers(name: str) -> None:
    layer = CASES[name]
    x, caches = _inputs(layer, 2)
    body, written = (
        _answer(_session(layer, written=flag), layer, x, PAST, caches) for flag in (False, True)
    )
    for found, expected in zip(written, body, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_a_row_has_its_bits_alone_and_among_others(name: str) -> None:
    layer = CASES[name]
    session = _session(layer, written=True)
    x, caches = _inputs(layer, 3)
    together = _answer(session, layer, x, PAST, caches)[0]
    for slot in range(3):
        state = [cache[slot : slot + 1] for cache in caches]
        for row in range(WIDTH):
            part = x[slot : slot + 1, row : row + 1]
            found, *state = _answer(session, layer, part, PAST + row, state)
            np.testing.assert_array_equal(found[0, 0], together[slot, row])
