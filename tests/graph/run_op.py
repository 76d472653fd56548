"""Runs one of our operators alone: its node and its function body, in ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from trtllm_dflash.graph.builder import OPS_DOMAIN, OPSET, GraphBuilder
from trtllm_dflash.graph.ops import OPS


def run_op(
    name: str, arrays: dict[str, np.ndarray], **attributes: float
) -> dict[str, np.ndarray]:
    """Outputs by name of operator `name` on `arrays` (by input name)."""
    import onnxruntime

    spec = OPS[name]
    model = op_model(name, arrays, **attributes)
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return dict(zip((t.name for t in spec.outputs), session.run(None, arrays), strict=True))


def op_model(name: str, arrays: dict[str, np.ndarray], **attributes: float) -> ir.Model:
    """Return a model of one node of operator `name`; every axis is dynamic."""
    spec, g = OPS[name], GraphBuilder()
    assert (
        list(arrays) == [t.name for t in spec.inputs][: len(arrays)]
    )  # the last may be optional
    inputs = []
    for key, x in arrays.items():
        shape = ir.Shape([f"{key}_{axis}" for axis in range(x.ndim)])
        inputs.append(ir.Value(name=key, shape=shape, type=_type(x.dtype)))
    outputs = spec(g, *inputs, **attributes)
    for output, tensor in zip(outputs, spec.outputs, strict=True):
        output.name = tensor.name
        dtype = (
            arrays["key_cache"].dtype
            if tensor.dtype == "C"
            else arrays[next(iter(arrays))].dtype
        )
        if tensor.dtype not in ("C", "T"):
            dtype = np.dtype(tensor.dtype)
        output.type = _type(dtype)
    imports = {"": OPSET, OPS_DOMAIN: 1}
    graph = ir.Graph(inputs, outputs, nodes=g.nodes, opset_imports=imports, name=name)
    return ir.Model(graph, ir_version=11, functions=spec.functions(g.nodes))


def _type(dtype: Any) -> ir.TensorType:
    return ir.TensorType(ir.DataType.from_numpy(np.dtype(dtype)))
