"""Whether a row of a product with integer weights has other bits alone than among others.

ONNX Runtime has other kernels for other processors. With 4 bits, those for AVX2 add up one row
alone in another order than rows together; those for AVX-512 do not. So a session asks this
processor, with a small product. Rows are multiplied in groups of 128, of which the last may have
one row. Steps are then a row wider. Any number of rows may go to an expert; with 4 bits each goes
there twice (`graph.integer_experts`).
"""

from __future__ import annotations

from functools import cache
from itertools import product
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from trtllm_dflash.errors import EngineError

_BLOCK = 32  # weights that share a scale
_OUTPUTS, _BLOCKS = 45, 5
_GROUP = 128  # rows that a kernel takes at once
_COUNTS = (*range(1, 17), _GROUP - 1, _GROUP, _GROUP + 1, _GROUP + 2)
_NUM_EXPERTS = 3
_OPSETS = (("", 21), ("com.microsoft", 1))


def has_lone_rows(precision: str | None) -> bool:
    """Tell whether a row alone differs, where weights are integers of that precision.

    Raises:
        EngineError: on a processor where rows together depend on each other, too.
    """
    if precision is None:
        return False
    # Head and embedding have 8 bits, and a step may decide one row alone.
    bits = 4 if precision == "int4" else 8
    of_tables, of_linears = _lone_rows(8), _lone_rows(bits)
    if of_tables is not False or of_linears is None or _experts_rows_differ(bits):
        raise EngineError(
            f"ONNX Runtime {ort.__version__} multiplies by weights of {precision} on this processor"
            " so that a row's result depends on the rows beside it. Answers would depend on drafts"
            " and on other requests. Build without --weight-only-precision, or use another version."
        )
    return of_linears


def without_lone_row(count: int, width: int) -> int:
    """Return the width with which no row of `count` slots is alone in its group."""
    return width + (count * width % _GROUP == 1)


@cache
def _lone_rows(bits: int) -> bool | None:
    """Tell whether a row alone has bits of its own; None: so have rows together."""
    differ = _counts_that_differ(_product(bits), {"x": _rows_of_random(_BLOCKS * _BLOCK)})
    if not differ <= {1, _GROUP + 1}:
        return None
    return bool(differ)


@cache
def _experts_rows_differ(bits: int) -> bool:
    """Tell whether an expert's rows depend on each other, with 4 bits of rows that come twice."""
    choice = np.random.default_rng(2).integers(0, _NUM_EXPERTS, _GROUP + 3)
    inputs = {
        "x": _rows_of_random(_BLOCKS * _BLOCK),
        "route": np.eye(_NUM_EXPERTS, dtype=np.float32)[choice],
    }
    return bool(_counts_that_differ(_experts(bits), inputs, copies=2 if bits == 4 else 1))


def _rows_of_random(columns: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((_GROUP + 3, columns)).astype(np.float32)


def _counts_that_differ(
    model: bytes, inputs: dict[str, NDArray[np.float32]], copies: int = 1
) -> set[int]:
    """Return the numbers of rows whose results are not those of the same rows among all."""
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])

    def run(rows: slice) -> NDArray[np.float32]:
        repeated = {name: np.tile(array[rows], (copies, 1)) for name, array in inputs.items()}
        out: NDArray[np.float32] = session.run(None, repeated)[0]
        return out[: len(out) // copies]

    whole, differ = run(slice(None)), set()
    for start, count in product((0, 1), _COUNTS):
        rows = slice(start, start + count)
        if not np.array_equal(run(rows), whole[rows]):
            differ.add(count)
    return differ


def _integers(rows: tuple[int, ...], bits: int) -> list[NDArray[Any]]:
    """Return codes, scales and zero points of a weight with so many rows."""
    rng = np.random.default_rng(1)
    packed = rng.integers(0, 256, (*rows, _BLOCKS, _BLOCK * bits // 8)).astype(np.uint8)
    scales = rng.uniform(0.001, 0.01, (*rows, _BLOCKS)).astype(np.float32)
    zero_points = rng.integers(0, 256, (*rows, -(-_BLOCKS * bits // 8))).astype(np.uint8)
    return [packed, scales, zero_points]


def _experts(bits: int) -> bytes:
    """Return a model of experts, of whom a row of `route` says which one a row of x takes."""
    size = _BLOCKS * _BLOCK
    stored: dict[str, NDArray[Any]] = {}
    for name, rows in (("gate_up", 2 * size), ("down", size)):
        packed, scales, zero_points = _integers((_NUM_EXPERTS, rows), bits)
        of_row = packed.reshape(_NUM_EXPERTS, rows, -1)
        stored |= {name: of_row, f"{name}_scale": scales, f"{name}_zero_point": zero_points}
    bias_and_third_product = [""] * 4
    node = helper.make_node(
        "QMoE",
        [
            *("x", "route", "gate_up", "gate_up_scale", "", "down", "down_scale"),
            *bias_and_third_product,
            *("gate_up_zero_point", "down_zero_point"),
        ],
        ["y"],
        domain="com.microsoft",
        k=1,
        expert_weight_bits=bits,
        block_size=_BLOCK,
        accuracy_level=4,
        activation_type="swiglu",
        swiglu_fusion=1,
    )
    return _model(node, {"x": size, "route": _NUM_EXPERTS}, size, stored)


def _product(bits: int) -> bytes:
    """Return a model of one product with weights of so many bits."""
    packed, scales, zero_points = _integers((_OUTPUTS,), bits)
    stored = {"packed": packed, "scales": scales, "zero_points": zero_points}
    node = helper.make_node(
        "MatMulNBits",
        ["x", *stored],
        ["y"],
        domain="com.microsoft",
        K=_BLOCKS * _BLOCK,
        N=_OUTPUTS,
        bits=bits,
        block_size=_BLOCK,
        accuracy_level=4,
    )
    return _model(node, {"x": _BLOCKS * _BLOCK}, _OUTPUTS, stored)


def _model(
    node: Any, inputs: dict[str, int], outputs: int, stored: dict[str, NDArray[Any]]
) -> bytes:
    """Return a model of one node; inputs and output y have rows of so many numbers."""
    *given, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", size])
        for name, size in (*inputs.items(), ("y", outputs))
    )
    initializers = [numpy_helper.from_array(array, name) for name, array in stored.items()]
    graph = helper.make_graph([node], "product", given, [y], initializers)
    opsets = [helper.make_opsetid(domain, version) for domain, version in _OPSETS]
    model: bytes = helper.make_model(
        graph, opset_imports=opsets, ir_version=10
    ).SerializeToString()
    return model
