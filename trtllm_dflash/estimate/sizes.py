"""The sizes of every tensor in a step's graph, for given sizes of its inputs.

ONNX's own shape inference loses the rows behind a Reshape to -1, and the rows are what is counted
here. This one knows all inputs' sizes, so every size is a number; integers that are shapes are
computed, other values are not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir

from trtllm_dflash.errors import GraphError
from trtllm_dflash.graph.builder import OPS_DOMAIN
from trtllm_dflash.graph.ops import OPS

Size = tuple[int, ...]
_SMALL = 64  # elements of the largest integer tensor that can be a shape

_SAME = (
    "Cast",
    "RMSNormalization",
    "RotaryEmbedding",
    "Sigmoid",
    "Softmax",
    "Clip",
    "Neg",
    "Abs",
    "Identity",
)
_BROADCAST = (
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Min",
    "Max",
    "Where",
    "Less",
    "Equal",
    "And",
    "GreaterOrEqual",
)


class Sizes:
    """The sizes of all values of `model`'s graph, by value name, when its inputs' symbols are
    `symbols`.

    Raises:
        GraphError: for an operator that is not known here.
    """

    def __init__(self, model: ir.Model, symbols: Mapping[str, int]) -> None:
        self._sizes: dict[str, Size] = {}
        self._numbers: dict[str, np.ndarray] = {}
        for value in model.graph.inputs:
            self._sizes[_name(value)] = _concrete(value, symbols)
        for value in model.graph.initializers.values():
            self._sizes[_name(value)] = _concrete(value, {})
        for node in model.graph:
            self._visit(node)

    def __getitem__(self, value: ir.Value) -> Size:
        return self._sizes[_name(value)]

    def _visit(self, node: ir.Node) -> None:
        numbers = self._compute(node)
        if numbers is not None:
            self._set(node.outputs[0], numbers.shape, numbers)
            return
        if node.domain == OPS_DOMAIN:
            for value, size in zip(node.outputs, self._declared(node), strict=True):
                self._set(value, size)
            return
        self._set(node.outputs[0], self._size(node))

    def _set(self, value: ir.Value, size: Size, numbers: np.ndarray | None = None) -> None:
        self._sizes[_name(value)] = size
        if numbers is not None and numbers.size <= _SMALL:
            self._numbers[_name(value)] = numbers

    def _declared(self, node: ir.Node) -> list[Size]:
        """Outputs of an operator of ours, from the symbols in its declaration."""
        spec, known = OPS[node.op_type], dict[str, int]()
        for value, tensor in zip(node.inputs, spec.inputs, strict=False):
            if value is not None:
                known |= dict(zip(tensor.axes, self[value], strict=True))
        return [
            tuple(known[axis] if axis in known else int(axis) for axis in tensor.axes)
            for tensor in spec.outputs
        ]

    def _compute(self, node: ir.Node) -> np.ndarray | None:
        """The integers that a node gives, where its inputs are known; None otherwise."""
        if node.op_type == "Constant":
            return _constant(node)
        if node.op_type == "Shape":
            (value,) = self._inputs(node)
            return np.array(self[value], np.int64)[
                _attribute(node, "start", 0) : _attribute(node, "end", None)
            ]
        compute = _INTEGERS.get(node.op_type)
        inputs = self._inputs(node)
        if compute is None or any(_name(value) not in self._numbers for value in inputs):
            return None
        return np.asarray(compute(node, *(self._numbers[_name(value)] for value in inputs)))

    def _size(self, node: ir.Node) -> Size:
        inputs = self._inputs(node)
        sizes, kind = [self[value] for value in inputs], node.op_type
        if kind in _SAME:
            return sizes[0]
        if kind in _BROADCAST:
            return np.broadcast_shapes(*sizes)
        rule = _RULES.get(kind)
        if rule is None or node.domain not in ("", "ai.onnx"):
            raise GraphError(
                f"{node.name}: the estimate cannot tell what sizes the operator {kind} gives"
            )
        return rule(node, sizes, [self._numbers.get(_name(value)) for value in inputs])

    def _inputs(self, node: ir.Node) -> list[ir.Value]:
        return [value for value in node.inputs if value is not None]


def _name(value: ir.Value) -> str:
    assert value.name is not None
    return value.name


def _concrete(value: ir.Value, symbols: Mapping[str, int]) -> Size:
    assert value.shape is not None
    return tuple(
        axis if isinstance(axis, int) else symbols[str(axis.value)] for axis in value.shape
    )


def _attribute(node: ir.Node, name: str, default: Any) -> Any:
    return node.attributes[name].value if name in node.attributes else default


def _constant(node: ir.Node) -> np.ndarray:
    (attribute,) = node.attributes.values()
    return attribute.value.numpy() if attribute.name == "value" else np.asarray(attribute.value)


def _reshape(size: Size, wanted: np.ndarray | None) -> Size:
    assert wanted is not None
    filled = [size[axis] if count == 0 else int(count) for axis, count in enumerate(wanted)]
    known = prod(count for count in filled if count != -1)
    return tuple(prod(size) // known if count == -1 else count for count in filled)


def _gather(axis: int, size: Size, index: Size) -> Size:
    return (*size[:axis], *index, *size[axis + 1 :])


def _unsqueeze(size: Size, axes: np.ndarray | None) -> Size:
    assert axes is not None
    wanted = list(size)
    for axis in sorted(int(axis) % (len(size) + len(axes)) for axis in axes):
        wanted.insert(axis, 1)
    return tuple(wanted)


def _slice(size: Size, numbers: list[np.ndarray | None]) -> Size:
    starts, ends, axes = numbers[1:4]
    assert starts is not None
    assert ends is not None
    assert axes is not None
    cut = list(size)
    for start, end, axis in zip(starts, ends, axes, strict=True):
        cut[axis] = len(range(cut[axis])[int(start) : int(end)])
    return tuple(cut)


def _joined(axis: int, sizes: list[Size]) -> Size:
    whole = list(sizes[0])
    whole[axis] = sum(size[axis] for size in sizes)
    return tuple(whole)


def _squeezed(size: Size, axes: np.ndarray | None) -> Size:
    gone = range(len(size)) if axes is None else [int(axis) % len(size) for axis in axes]
    return tuple(
        count
        for axis, count in enumerate(size)
        if axis not in gone or (axes is None and count != 1)
    )


def _reduced(node: ir.Node, size: Size) -> Size:
    axis = _attribute(node, "axis", 0) % len(size)
    kept = (1,) if _attribute(node, "keepdims", 1) else ()
    return (*size[:axis], *kept, *size[axis + 1 :])


_Rule = Callable[[ir.Node, list[Size], list[np.ndarray | None]], Size]
_RULES: Mapping[str, _Rule] = {
    "Gemm": lambda node, s, _: (s[0][0], s[1][0 if _attribute(node, "transB", 0) else 1]),
    "MatMul": lambda _, s, __: (*np.broadcast_shapes(s[0][:-2], s[1][:-2]), s[0][-2], s[1][-1]),
    "Reshape": lambda _, s, numbers: _reshape(s[0], numbers[1]),
    "Gather": lambda node, s, _: _gather(_attribute(node, "axis", 0), s[0], s[1]),
    "GatherND": lambda node, s, _: (
        *s[1][:-1],
        *s[0][_attribute(node, "batch_dims", 0) + s[1][-1] :],
    ),
    "Concat": lambda node, s, _: _joined(_attribute(node, "axis", 0), s),
    "Unsqueeze": lambda _, s, numbers: _unsqueeze(s[0], numbers[1]),
    "Squeeze": lambda _, s, numbers: _squeezed(s[0], numbers[1] if len(numbers) > 1 else None),
    "Slice": lambda _, s, numbers: _slice(s[0], numbers),
    "Expand": lambda _, s, numbers: np.broadcast_shapes(s[0], tuple(int(n) for n in numbers[1])),  # type: ignore[union-attr]
    "Transpose": lambda node, s, _: tuple(s[0][axis] for axis in _attribute(node, "perm", ())),
    "ArgMax": lambda node, s, _: _reduced(node, s[0]),
}
_INTEGERS: Mapping[str, Callable[..., Any]] = {
    "Add": lambda _, a, b: a + b,
    "Sub": lambda _, a, b: a - b,
    "Mul": lambda _, a, b: a * b,
    "Cast": lambda _, a: a,
    "Concat": lambda node, *parts: np.concatenate(parts, _attribute(node, "axis", 0)),
    "Gather": lambda node, a, index: np.take(a, index, _attribute(node, "axis", 0)),
    "Slice": lambda _, a, start, end, *__: a[int(start[0]) : int(end[0])],
    "Squeeze": lambda _, a, *axes: np.squeeze(a, tuple(map(int, axes[0])) if axes else None),
    "Unsqueeze": lambda _, a, axes: np.reshape(a, _unsqueeze(a.shape, axes)),
    "Range": lambda _, start, end, step: np.arange(int(start), int(end), int(step)),
    "Reshape": lambda _, a, wanted: np.reshape(a, [int(n) for n in wanted]),
}
