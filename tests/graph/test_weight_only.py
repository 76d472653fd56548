"""Products with integer weights in ONNX Runtime: near the float product, and equal row by row.

The equality is what DFlash = plain and batch = alone rest on: a row's bits may depend on nothing
but the row. On some processors a row must not be alone, and sessions give it a neighbour.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

onnxruntime = pytest.importorskip("onnxruntime")

from trtllm_dflash.checkpoint.block_integers import BITS, BLOCK_LENGTH, BlockIntegers
from trtllm_dflash.checkpoint.safetensors import read_tensor_infos
from trtllm_dflash.checkpoint.writer import write_arrays
from trtllm_dflash.errors import EngineError
from trtllm_dflash.graph.builder import OPSET, GraphBuilder
from trtllm_dflash.graph.layers import LayerBuilder
from trtllm_dflash.graph.weight_only import RUNTIME_DOMAIN
from trtllm_dflash.graph.weight_source import WeightSource
from trtllm_dflash.runtime.sessions import integer_rows
from trtllm_dflash.runtime.sessions.integer_rows import has_lone_rows, without_lone_row

SIZES = [
    (576, 192),
    (1536, 576),
    (48, 97),
    (80, 48),
]  # in, out; the last ones end in a part block
WIDTHS = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 127, 257)


class _Product:
    """The linear `a_proj`, and rows of the table `embed_tokens`, of one weight."""

    def __init__(
        self, folder: Path, size: tuple[int, int], precision: str, bias: bool = False
    ) -> None:
        columns, rows = size
        rng = np.random.default_rng(columns)
        self.weight = rng.standard_normal((rows, columns)).astype(np.float32)
        self.bias = rng.standard_normal(rows).astype(np.float32)
        arrays = {"a_proj.weight": self.weight, "embed_tokens.weight": self.weight}
        if bias:
            arrays["a_proj.bias"] = self.bias
        file = folder / "model.safetensors"
        write_arrays(file, {name: ("F32", array) for name, array in arrays.items()})
        tensors = read_tensor_infos(file)
        g = GraphBuilder()
        source = WeightSource("target", tensors, ir.DataType.FLOAT)
        m = LayerBuilder(g, source, ir.DataType.FLOAT, 1e-5, weight_only=precision)
        x = ir.Value(name="x", shape=ir.Shape(["N", columns]), type=_FLOAT)
        ids = ir.Value(name="ids", shape=ir.Shape(["B", "S"]), type=_INT64)
        y, picked = m.linear(x, "a_proj"), m.table_rows(ids, "embed_tokens")
        y.name, picked.name = "y", "picked"
        y.type = picked.type = _FLOAT
        graph = ir.Graph(
            [x, ids],
            [y, picked],
            nodes=g.nodes,
            initializers=list(g.initializers.values()),
            opset_imports={"": OPSET, RUNTIME_DOMAIN: 1},
            name="product",
        )
        for value in graph.initializers.values():
            value.const_value = ir.Tensor(value.const_value.numpy())
        self._model = ir.to_proto(ir.Model(graph, ir_version=11)).SerializeToString()

    def session(self, threads: int = 1) -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        return onnxruntime.InferenceSession(self._model, options)


_FLOAT, _INT64 = ir.TensorType(ir.DataType.FLOAT), ir.TensorType(ir.DataType.INT64)
_IDS = np.array([[3, 0], [3, 40]])


@pytest.mark.parametrize("precision", BITS)
@pytest.mark.parametrize("size", SIZES)
def test_a_row_is_the_same_bits_in_every_width(
    size: tuple[int, int], precision: str, tmp_path: Path
) -> None:
    product = _Product(tmp_path, size, precision)
    x = np.random.default_rng(1).standard_normal((258, size[0])).astype(np.float32)
    x[7] *= 1e3  # a row whose scale is another
    sessions = [product.session(threads) for threads in (1, 2)]
    whole = sessions[0].run(["y"], {"x": x, "ids": _IDS})[0]
    widths = WIDTHS
    if has_lone_rows(precision):
        widths = tuple(width for width in WIDTHS if without_lone_row(1, width) == width)
    for session in sessions:
        for width in widths:
            for start in (0, 1):
                rows = slice(start, start + width)
                (found,) = session.run(["y"], {"x": x[rows], "ids": _IDS})
                np.testing.assert_array_equal(found, whole[rows], f"{width} rows")


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("precision", BITS)
def test_products_err_by_the_rounding_alone(precision: str, bias: bool, tmp_path: Path) -> None:
    """The weight is what its integers stand for; a row errs by half a step of 8 bits a block."""
    size = (76, 45)
    product = _Product(tmp_path, size, precision, bias)
    x = np.random.default_rng(2).standard_normal((6, size[0])).astype(np.float32)
    (found,) = product.session().run(["y"], {"x": x, "ids": _IDS})
    weight = BlockIntegers.of(product.weight, BITS[precision]).dequantized(size[0])
    expected = x.astype(np.float64) @ weight.T.astype(np.float64)
    expected += product.bias if bias else 0
    error = np.zeros_like(expected)
    for start in range(0, size[0], BLOCK_LENGTH):
        block = slice(start, start + BLOCK_LENGTH)
        half_step = np.abs(x[:, block]).max(axis=1, keepdims=True) / 254
        error += half_step * np.abs(weight[:, block]).sum(axis=1)
    assert (np.abs(found - expected) <= error * 1.01 + 1e-5).all()
    assert np.abs(found - expected).max() > 1e-4  # integers are what is multiplied


@pytest.mark.parametrize("precision", BITS)
def test_table_rows_are_what_their_8_bits_stand_for(precision: str, tmp_path: Path) -> None:
    product = _Product(tmp_path, (76, 45), precision)
    x = np.zeros((1, 76), np.float32)
    (found,) = product.session().run(["picked"], {"x": x, "ids": _IDS})
    expected = BlockIntegers.of(product.weight, 8).dequantized(76)[_IDS]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("alone", [False, True])
def test_a_step_is_wider_where_lone_rows_differ(
    alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(integer_rows, "_lone_rows", {4: alone, 8: False}.get)
    assert [has_lone_rows(name) for name in (None, "int8", "int4")] == [False, False, alone]
    widths = [without_lone_row(*size) for size in ((1, 1), (4, 1), (1, 129), (3, 43), (2, 8))]
    assert widths == [2, 1, 130, 44, 8]


@pytest.mark.parametrize("bits", [8, 4])
def test_a_processor_whose_experts_depend_on_others_is_refused(
    bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        integer_rows, "_experts_rows_differ", {bits: True, 12 - bits: False}.get
    )
    with pytest.raises(EngineError, match=r"depends on the rows beside it"):
        has_lone_rows(f"int{bits}")
    has_lone_rows(f"int{12 - bits}")


def test_experts_are_asked_for_lone_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The question is put with one row, and 129, of an expert; with 4 bits each comes twice."""
    asked: list[tuple[int, set[int]]] = []
    inner = integer_rows._counts_that_differ

    def ask(model: bytes, inputs: dict[str, np.ndarray], copies: int = 1) -> set[int]:
        asked.append((copies, {len(rows) for rows in inputs.values()}))
        return inner(model, inputs, copies)

    monkeypatch.setattr(integer_rows, "_counts_that_differ", ask)
    for bits in (8, 4):
        assert integer_rows._experts_rows_differ.__wrapped__(bits) is False
    assert asked == [(1, {131}), (2, {131})]


@pytest.mark.parametrize("found", [{4: None, 8: False}, {4: False, 8: True}, {4: True}])
def test_a_processor_whose_rows_depend_on_others_is_refused(
    found: dict[int, bool | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(integer_rows, "_lone_rows", found.get)
    with pytest.raises(EngineError, match=r"depends on the rows beside it.*Build without"):
        has_lone_rows("int4")
