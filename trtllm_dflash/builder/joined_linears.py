"""Joins the linears of one input whose weights lie one behind the other in a file.

TensorRT computes such linears, as gate and up of an MLP, in one product anyway. For that it puts
their weights together in memory of its own. Weights that are one tensor already stay in the mapped
checkpoint. In most files gate and up lie so, because tensors are stored by name.

    x ─┬─ Gemm (gate)          x ─ Gemm (gate, up) ─ Split ─┬─
       └─ Gemm (up)                                         └─

The split is of [N, linears, rows], and not of columns. TensorRT-RTX 1.7 would move a split of
columns in front of the product, onto the weight, and copy that twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

# Of the weights together. A join has 9 kB of code in the engine, and saves a copy of them.
_LEAST_BYTES = 1 << 20


@dataclass(frozen=True)
class _Linear:
    """A node Gemm without a bias, and the weight [out, in] that only it uses."""

    node: ir.Node
    weight: ir.ExternalTensor

    @property
    def rows(self) -> int:
        return int(self.weight.shape.numpy()[0])


def join_linears(model: ir.Model) -> int:
    """Join what can be joined in the graph, and return how many linears that were.

    Those of one input are joined together or not at all, since TensorRT would copy them all. They
    have as many rows each, as gate and up have.
    """
    groups: dict[ir.Value, list[_Linear]] = {}
    for node in model.graph:
        linear = _linear(node)
        if linear is not None and node.inputs[0] is not None:
            groups.setdefault(node.inputs[0], []).append(linear)
    joined = 0
    for x, linears in groups.items():
        in_file = sorted(linears, key=lambda linear: linear.weight.offset or 0)
        if len(linears) > 1 and _can_be_one(in_file):
            _join(model.graph, x, linears[0].node, in_file)
            joined += len(linears)
    return joined


def _linear(node: ir.Node) -> _Linear | None:
    """Return a node as a linear, None if it is anything else."""
    if node.op_type != "Gemm" or len(node.inputs) != 2 or set(node.attributes) != {"transB"}:
        return None
    weight, result = node.inputs[1], node.outputs[0]
    if weight is None or len(weight.uses()) != 1 or result.is_graph_output():
        return None
    tensor = weight.const_value
    if not isinstance(tensor, ir.ExternalTensor) or node.attributes["transB"].as_int() != 1:
        return None
    return _Linear(node, tensor)


def _can_be_one(linears: Sequence[_Linear]) -> bool:
    first, rows = linears[0].weight, linears[0].rows
    end = first.offset or 0
    for linear in linears:
        weight = linear.weight
        if linear.rows != rows:
            return False
        if (weight.path, weight.dtype, weight.offset or 0) != (first.path, first.dtype, end):
            return False
        end += weight.nbytes
    return end - (first.offset or 0) >= _LEAST_BYTES


def _join(graph: ir.Graph, x: ir.Value, place: ir.Node, linears: Sequence[_Linear]) -> None:
    """Put one product and its split in front of `place`, and remove the linears."""
    nodes = [linear.node for linear in linears]
    first = linears[0].weight
    old_weights = [str(node.inputs[1].name) for node in nodes if node.inputs[1] is not None]
    name = f"{old_weights[0]}.joined"
    weight = ir.ExternalTensor(
        first.location,
        first.offset,
        sum(linear.weight.nbytes for linear in linears),
        first.dtype,
        shape=ir.Shape([len(linears) * linears[0].rows, int(first.shape.numpy()[1])]),
        name=name,
        base_dir=first.base_dir,
    )
    count, rows = len(linears), linears[0].rows
    made = {
        "weight": weight,
        "by_linear": ir.tensor(np.array([-1, count, rows]), name=f"{name}.by_linear"),
        "sizes": ir.tensor(np.ones(count, np.int64), name=f"{name}.sizes"),
        "flat": ir.tensor(np.array([0, -1]), name=f"{name}.flat"),
    }
    constants = {
        key: ir.Value(name=str(tensor.name), const_value=tensor) for key, tensor in made.items()
    }
    product = ir.node("Gemm", [x, constants["weight"]], {"transB": 1}, name=f"{name}.Gemm")
    by_linear = ir.node("Reshape", [product.outputs[0], constants["by_linear"]])
    split = ir.node(
        "Split", [by_linear.outputs[0], constants["sizes"]], {"axis": 1}, num_outputs=count
    )
    parts = [ir.node("Reshape", [part, constants["flat"]]) for part in split.outputs]
    graph.insert_before(place, [product, by_linear, split, *parts])
    results = [part.outputs[0] for part in parts]
    for node, new in zip(nodes, results, strict=True):
        old = node.outputs[0]
        new.type, new.shape = old.type, old.shape
        ir.convenience.replace_all_uses_with(old, new)
    names = [node.outputs[0].name for node in nodes]
    graph.remove(nodes, safe=True)
    for new, called in zip(results, names, strict=True):
        new.name = called
    for old_name in old_weights:
        graph.initializers.pop(old_name)
    for value in constants.values():
        graph.register_initializer(value)
