"""Whether a row of a product with integer weights has other bits alone than among others.

ONNX Runtime has other kernels for other processors. With 4 bits, those for AVX2 add up one row
alone in another order than rows together; those for AVX-512 do not. So a session asks this
processor, with a small product. Rows are multiplied in groups of 128, of which the last may have
one row. Steps are then a row wider.
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
_OPSETS = (("", 21), ("com.microsoft", 1))


def has_lone_rows(precision: str | None) -> bool:
    """Tell whether a row alone differs, where weights are integers of that precision.

    Raises:
        EngineError: on a processor where rows together depend on each other, too.
    """
    if precision is None:
        return False
    # Head and embedding have 8 bits, and a step may decide one row alone.
    of_tables, of_linears = _lone_rows(8), _lone_rows(4 if precision == "int4" else 8)
    if of_tables is not False or of_linears is None:
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
    rng = np.random.default_rng(0)
    x = rng.standard_normal((_GROUP + 3, _BLOCKS * _BLOCK)).astype(np.float32)
    session = ort.InferenceSession(_product(bits), providers=["CPUExecutionProvider"])
    (whole,) = session.run(None, {"x": x})
    differ = set()
    for start, count in product((0, 1), _COUNTS):
        rows = slice(start, start + count)
        if not np.array_equal(session.run(None, {"x": x[rows]})[0], whole[rows]):
            differ.add(count)
    if not differ <= {1, _GROUP + 1}:
        return None
    return bool(differ)


def _product(bits: int) -> bytes:
    """Return a model of one product with weights of so many bits."""
    rng = np.random.default_rng(1)
    packed = rng.integers(0, 256, (_OUTPUTS, _BLOCKS, _BLOCK * bits // 8)).astype(np.uint8)
    scales = rng.uniform(0.001, 0.01, (_OUTPUTS, _BLOCKS)).astype(np.float32)
    zero_points = rng.integers(0, 256, (_OUTPUTS, -(-_BLOCKS * bits // 8))).astype(np.uint8)
    stored: dict[str, NDArray[Any]] = {
        "packed": packed,
        "scales": scales,
        "zero_points": zero_points,
    }
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
    sizes = {"x": _BLOCKS * _BLOCK, "y": _OUTPUTS}
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", size])
        for name, size in sizes.items()
    )
    initializers = [numpy_helper.from_array(array, name) for name, array in stored.items()]
    graph = helper.make_graph([node], "product", [x], [y], initializers)
    opsets = [helper.make_opsetid(domain, version) for domain, version in _OPSETS]
    model: bytes = helper.make_model(
        graph, opset_imports=opsets, ir_version=10
    ).SerializeToString()
    return model
