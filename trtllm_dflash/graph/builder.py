"""A thin way to write ONNX: operators are methods, Python numbers are constants, names follow a
scope.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx_ir as ir

from trtllm_dflash.errors import GraphError

OPSET = 24  # TensorScatter, the in-place cache write, first appears here
OPS_DOMAIN = "trtllm_dflash"
DTYPES = {  # by their names in declarations
    "float32": ir.DataType.FLOAT,
    "bfloat16": ir.DataType.BFLOAT16,
    "float8e4m3fn": ir.DataType.FLOAT8E4M3FN,
    "int32": ir.DataType.INT32,
    "int64": ir.DataType.INT64,
}

Operand = ir.Value | int | float | bool | Sequence[int]


class GraphBuilder:
    """Collects nodes; `g.MatMul(a, b)` emits an ONNX MatMul and returns its output value.

    An operand that is a Python int, float, bool or list of ints becomes a constant (int64, float32,
    bool, int64 [n]). `attributes`: those of the function whose body is written.
    """

    def __init__(self, attributes: Collection[str] = ()) -> None:
        self.nodes: list[ir.Node] = []
        self.initializers: dict[str, ir.Value] = {}
        self._attributes = frozenset(attributes)
        self._scope: list[str] = []
        self._names: dict[str, int] = {}
        self._constants: list[dict[Any, ir.Value]] = [{}]

    def __getattr__(self, op_type: str) -> Callable[..., ir.Value]:
        if not op_type[0].isupper():
            raise AttributeError(op_type)
        return lambda *inputs, **attributes: self.emit(op_type, inputs, attributes)[0]

    def emit(
        self,
        op_type: str,
        inputs: Sequence[Operand | None],
        attributes: dict[str, Any] | None = None,
        *,
        domain: str = "",
        num_outputs: int = 1,
    ) -> tuple[ir.Value, ...]:
        """Append one node and return its output values."""
        values = [None if operand is None else self.as_value(operand) for operand in inputs]
        name = self._unique(op_type)
        node = ir.node(
            op_type, values, attributes, domain=domain, num_outputs=num_outputs, name=name
        )
        for index, output in enumerate(node.outputs):
            output.name = f"{name}/output_{index}"
        self.nodes.append(node)
        return tuple(node.outputs)

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Prefix the names of all nodes emitted inside with `name/`."""
        self._scope.append(name)
        yield
        self._scope.pop()

    def initializer(self, name: str, tensor: Callable[[], ir.TensorProtocol]) -> ir.Value:
        """Return the initializer called `name`, made from `tensor()` on first use: a shared weight
        is one tensor.
        """
        if name not in self.initializers:
            made = tensor()
            shape = ir.Shape(list(made.shape.numpy()))
            self.initializers[name] = ir.Value(
                name=name, shape=shape, type=ir.TensorType(made.dtype), const_value=made
            )
        return self.initializers[name]

    def has_attribute(self, name: str) -> bool:
        """Return whether the enclosing function has the attribute `name`."""
        return name in self._attributes

    def attribute(self, name: str, onnx_type: ir.AttributeType) -> ir.Value:
        """Return the value of the function's own attribute `name`, as a scalar constant."""
        key = {ir.AttributeType.INT: "value_int", ir.AttributeType.FLOAT: "value_float"}[
            onnx_type
        ]
        node = ir.Node(
            "",
            "Constant",
            [],
            [ir.RefAttr(key, name, onnx_type)],
            num_outputs=1,
            name=self._unique(name),
        )
        node.outputs[0].name = f"{node.name}/output_0"
        self.nodes.append(node)
        return node.outputs[0]

    def repeat(
        self,
        times: ir.Value,
        state: Sequence[ir.Value],
        body: Callable[..., Sequence[ir.Value]],
    ) -> tuple[ir.Value, ...]:
        """Emit a Loop: `state = body(*state)`, `times` (an int64 scalar) times.

        It also serves as the conditional (`times` 0 or 1): TensorRT-RTX 1.7 cannot compile a Loop
        inside an If.
        """
        return self.loop(times, state, lambda _, *carried: body(*carried))

    def loop(
        self,
        times: ir.Value,
        state: Sequence[ir.Value],
        body: Callable[..., Sequence[ir.Value]],
        num_stacked: int = 0,
    ) -> tuple[ir.Value, ...]:
        """Emit a Loop: `*state, *rest = body(iteration, *state)`, `times` (an int64 scalar) times.

        Return the state behind the last iteration, then each of the `num_stacked` values of rest,
        those of all iterations stacked along a new first axis.
        """
        names = [self._unique(f"state_{index}") for index in range(len(state))]
        carried = [
            ir.Value(name=name, type=value.type)
            for name, value in zip(names, state, strict=True)
        ]
        iteration = ir.Value(
            name=self._unique("iteration"),
            type=ir.TensorType(ir.DataType.INT64),
            shape=ir.Shape([]),
        )
        go_on = ir.Value(
            name=self._unique("go_on"), type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([])
        )
        inputs = [iteration, go_on, *carried]
        outer, self.nodes = self.nodes, []
        self._constants.append({})
        with self.scope("body"):
            # A body may not return its own input or a value of the enclosing graph, hence the
            # Identity.
            outputs = [self.Identity(value) for value in (go_on, *body(iteration, *carried))]
        graph = ir.Graph(inputs, outputs, nodes=self.nodes, name=self._unique("body"))
        self._constants.pop()
        self.nodes = outer
        num_outputs = len(state) + num_stacked
        return self.emit(
            "Loop", [times, True, *state], {"body": graph}, num_outputs=num_outputs
        )

    def constant(self, array: np.ndarray) -> ir.Value:
        """Return a constant of an array's values, type and shape."""
        return self.emit("Constant", [], {"value": ir.tensor(array)})[0]

    def cast(self, x: ir.Value, dtype: ir.DataType) -> ir.Value:
        """Convert to `dtype`."""
        return self.Cast(x, to=int(dtype))

    def size(self, x: ir.Value, axis: int) -> ir.Value:
        """Return the size of one axis of `x`, as int64 [1]."""
        return (
            self.Shape(x, start=axis, end=axis + 1) if axis != -1 else self.Shape(x, start=-1)
        )

    def arange(self, length: ir.Value) -> ir.Value:
        """0 .. length-1 as int64 [length]; `length` is int64 [1]."""
        return self.Range(0, self.Squeeze(length), 1)

    def as_value(self, operand: Operand) -> ir.Value:
        if isinstance(operand, ir.Value):
            return operand
        key = (type(operand), tuple(operand) if isinstance(operand, Sequence) else operand)
        for known in self._constants:
            if key in known:
                return known[key]
        if isinstance(operand, bool):
            value = self.emit(
                "Constant", [], {"value": ir.tensor(operand, dtype=ir.DataType.BOOL)}
            )[0]
        elif isinstance(operand, Sequence):
            value = self.emit("Constant", [], {"value_ints": list(operand)})[0]
        else:
            value = self.emit(
                "Constant",
                [],
                {"value_float" if isinstance(operand, float) else "value_int": operand},
            )[0]
        self._constants[-1][key] = value
        return value

    def _unique(self, leaf: str) -> str:
        name = "/" + "/".join([*self._scope, leaf])
        count = self._names[name] = self._names.get(name, -1) + 1
        return name if count == 0 else f"{name}_{count}"


def function_from_body(
    name: str,
    input_names: Sequence[str],
    output_names: Sequence[str],
    attributes: Sequence[ir.Attr],
    body: Callable[..., tuple[ir.Value, ...]],
    *,
    domain: str = OPS_DOMAIN,
) -> ir.Function:
    """Record `body(g, *inputs)` as an ONNX function of our domain, or of another."""
    g = GraphBuilder([attribute.name for attribute in attributes])
    inputs = [ir.Value(name=input_name) for input_name in input_names]
    results = body(g, *inputs)
    if len(results) != len(output_names):
        raise GraphError(
            f"{name}: its body returns {len(results)} values, its declaration names"
            f" {len(output_names)}"
        )
    for output_name, result in zip(output_names, results, strict=True):
        result.name = output_name
    graph = ir.Graph(inputs, results, nodes=g.nodes, opset_imports={"": OPSET}, name=name)
    return ir.Function(domain, name, graph=graph, attributes=attributes)
