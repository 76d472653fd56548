"""RoPE in the step: each type against NumPy, and what stays: the rest of a head, values."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from trtllm_dflash.graph.builder import OPSET, GraphBuilder
from trtllm_dflash.graph.layers import Rotary

pytest.importorskip("onnxruntime")

BATCH, ROWS, HEADS, HEAD_DIM, POSITIONS = 2, 3, 5, 14, 11


def _rotated(
    x: np.ndarray, positions: np.ndarray, cos: np.ndarray, sin: np.ndarray
) -> np.ndarray:
    """Run x [B, N, heads·D] through Rotary, in its type; return [B, N, heads, D].

    As values, x must stay as it is, bit by bit.
    """
    import onnxruntime

    g = GraphBuilder()
    dtype = ir.DataType.from_numpy(x.dtype)
    value = ir.Value(
        name="x", shape=ir.Shape(["b", "n", x.shape[2]]), type=ir.TensorType(dtype)
    )
    places = ir.Value(
        name="positions", shape=ir.Shape(["b", "n"]), type=ir.TensorType(ir.DataType.INT64)
    )
    tables = [
        g.initializer(name, lambda table=table: ir.Tensor(table))  # type: ignore[misc]
        for name, table in (("cos", cos), ("sin", sin))
    ]
    dim = 2 * cos.shape[1]
    rotary = Rotary(g, *tables, dtype, 0 if dim == HEAD_DIM else dim)
    shape = g.Shape(places)
    both = [g.Identity(rotary(value, places, shape, (HEADS, HEAD_DIM))) for _ in range(2)]
    by_head = g.Reshape(value, g.Concat(shape, [HEADS, HEAD_DIM], axis=0))
    both.append(g.Identity(rotary.beside(by_head, places)))
    for index, output in enumerate(both):
        output.name, output.type = f"y{index}", ir.TensorType(dtype)
    gathers = [node for node in g.nodes if node.op_type == "Gather"]
    assert len(gathers) == (0 if dtype == ir.DataType.FLOAT else 2)  # once for all layers
    graph = ir.Graph(
        [value, places],
        both,
        nodes=g.nodes,
        initializers=list(g.initializers.values()),
        opset_imports={"": OPSET},
        name="rotary",
    )
    session = onnxruntime.InferenceSession(
        ir.to_proto(ir.Model(graph, ir_version=11)).SerializeToString(),
        providers=["CPUExecutionProvider"],
    )
    first, second, beside = session.run(None, {"x": x, "positions": positions})
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(beside.reshape(x.shape).view(np.uint8), x.view(np.uint8))
    result: np.ndarray = first.reshape(BATCH, ROWS, HEADS, HEAD_DIM)
    return result


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("dim", [HEAD_DIM, 6])
def test_rotation_is_in_float32_and_rounded_once(dtype: str, dim: int) -> None:
    """float16 stands for every narrow type: ONNX Runtime computes it on the CPU."""
    random = np.random.default_rng(dim)
    angles = random.uniform(0, 7, (POSITIONS, dim // 2))
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    x = random.standard_normal((BATCH, ROWS, HEADS * HEAD_DIM)).astype(dtype)
    x[0, 0, 0] = -0.0
    positions = random.integers(0, POSITIONS, (BATCH, ROWS))
    heads = x.reshape(BATCH, ROWS, HEADS, HEAD_DIM)
    first, second, rest = np.split(heads.astype(np.float64), [dim // 2, dim], axis=3)
    c, s = (table[positions][:, :, None].astype(np.float64) for table in (cos, sin))
    expected = np.concatenate([first * c - second * s, second * c + first * s, rest], axis=3)
    found = _rotated(x, positions, cos, sin)
    assert found.dtype == x.dtype
    half_a_unit = np.finfo(dtype).eps / 2
    np.testing.assert_allclose(found, expected, rtol=1.01 * half_a_unit, atol=1e-6)
    np.testing.assert_array_equal(found[..., dim:], heads[..., dim:])
