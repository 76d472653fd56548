"""Fewer nodes for ONNX Runtime: a step of a small model spends much of its time between kernels.

Products of one input become one, as those of query, key and value. It rounds the input once, and
the threads meet once:

    x ─┬─ q ─           x ─ q, k, v ─ Split ─┬─
       ├─ k ─                                ├─
       └─ v ─                                └─

A sum that is normed becomes one operator with two results, the norm and the sum:

    x ─┬─ Add ─┬─ norm ─        x ─┬─ SkipSimplifiedLayerNormalization ─┬─ norm
    y ─┘       └─ sum           y ─┘                                    └─ sum

Both go row by row, so a row's result depends on no other, as before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from trtllm_dflash.builder.external_weights import stored_bytes
from trtllm_dflash.builder.runtime_attention import write_attention
from trtllm_dflash.engine_dir.files import JOINED, JOINED_COLUMNS
from trtllm_dflash.graph.column_split import split_node
from trtllm_dflash.graph.weight_only import PRODUCT, RUNTIME_DOMAIN

_SKIP_NORM = "SkipSimplifiedLayerNormalization"
_SUFFIX = ".weight"


def fuse_for_runtime(model: ir.Model) -> None:
    """Join products of one input, and sums with their norms."""
    graph = model.graph
    graph.opset_imports.setdefault(RUNTIME_DOMAIN, 1)
    by_input: dict[tuple[Any, ...], list[ir.Node]] = {}
    for node in graph:
        key = _product_key(node)
        if key is not None:
            by_input.setdefault(key, []).append(node)
    for nodes in by_input.values():
        if len(nodes) > 1:
            _join(graph, nodes)
    for node in list(graph):
        if node.op_type == "RMSNormalization":
            _fuse_norm(graph, node)
    write_attention(model)


def _product_key(node: ir.Node) -> tuple[Any, ...] | None:
    """Return what linears that can be one have in common, None for any other node."""
    if node.op_type not in ("Gemm", PRODUCT) or node.outputs[0].is_graph_output():
        return None
    weights = node.inputs[1:]
    for weight in weights:
        if weight is not None and not (_is_linears(weight) and len(weight.uses()) == 1):
            return None
    if weights[0] is None or not str(weights[0].name).endswith(_SUFFIX):
        return None
    same = {name: str(row) for name, row in node.attributes.items() if name != "N"}
    if node.op_type == "Gemm" and same.keys() != {"transB"}:
        return None
    present = tuple(weight is not None for weight in weights)
    return (node.inputs[0], node.op_type, tuple(sorted(same.items())), present)


def _is_linears(value: ir.Value) -> bool:
    return isinstance(value.const_value, ir.ExternalTensor | ir.LazyTensor)


def _join(graph: ir.Graph, nodes: Sequence[ir.Node]) -> None:
    """Put one product and a split in the place of the first of some linears."""
    first = nodes[0]
    parts = [[node.inputs[index] for node in nodes] for index in range(1, len(first.inputs))]
    joined = [None if part[0] is None else _concatenated(graph, part) for part in parts]
    sizes = [_rows(node.inputs[1]) for node in nodes]
    attributes = dict(first.attributes)
    if "N" in attributes:
        attributes["N"] = ir.AttrInt64("N", sum(sizes))
    product = ir.Node(
        first.domain,
        first.op_type,
        [first.inputs[0], *joined],
        list(attributes.values()),
        name=first.name,
        metadata_props={JOINED_COLUMNS: JOINED.join(map(str, sizes))},
    )
    name = f"{first.name}/split"
    split = split_node(graph, product.outputs[0], sizes, name)
    product.outputs[0].name = f"{name}/joined"
    graph.insert_before(first, [product, split])
    _replace(graph, nodes, split.outputs)


def _replace(graph: ir.Graph, nodes: Sequence[ir.Node], results: Sequence[ir.Value]) -> None:
    """Let results have the names and users of what the nodes gave, and remove these."""
    olds = [node.outputs[0] for node in nodes]
    names = [old.name for old in olds]
    weights = [value for node in nodes for value in node.inputs[1:] if value is not None]
    for old, new in zip(olds, results, strict=True):
        new.type, new.shape = old.type, old.shape
        ir.convenience.replace_all_uses_with(old, new)
    graph.remove(nodes, safe=True)
    for new, name in zip(results, names, strict=True):
        new.name = name
    for weight in weights:
        graph.initializers.pop(str(weight.name))


def _rows(weight: ir.Value | None) -> int:
    assert weight is not None
    assert weight.const_value is not None
    return int(weight.const_value.shape.numpy()[0])


def _concatenated(graph: ir.Graph, values: Sequence[ir.Value | None]) -> ir.Value:
    """Return an initializer of the rows of all, which are read when it is."""
    tensors, names = [], []
    for value in values:
        assert value is not None
        assert value.const_value is not None
        tensors.append(value.const_value)
        names.append(str(value.name).rpartition("."))
    columns = [int(size) for size in tensors[0].shape.numpy()[1:]]
    shape = ir.Shape([sum(map(_rows, values)), *columns])
    called = f"{JOINED.join(module for module, _, _ in names)}.{names[0][2]}"
    dtype = tensors[0].dtype

    def rows() -> ir.TensorProtocol:
        # By our own reader: onnx_ir follows no link out of a checkpoint, where the user allowed it.
        stored = np.concatenate([stored_bytes(tensor) for tensor in tensors])
        return ir.Tensor(stored.view(dtype.numpy()).reshape(shape.numpy()), dtype=dtype)

    lazy = ir.LazyTensor(rows, dtype, shape, name=called)
    joined = ir.Value(name=called, shape=shape, type=ir.TensorType(dtype), const_value=lazy)
    graph.register_initializer(joined)
    return joined


def _fuse_norm(graph: ir.Graph, norm: ir.Node) -> None:
    """Put one operator in the place of a norm and of the sum that it reads."""
    total, weight = norm.inputs
    add = total.producer() if total is not None else None
    if add is None or add.op_type != "Add" or total is None or total.is_graph_output():
        return
    if weight is None or not weight.is_initializer() or weight.dtype != ir.DataType.FLOAT:
        return
    if any(value is None or value.producer() is None for value in add.inputs):
        return  # a constant, which may be of another shape
    fused = ir.node(
        _SKIP_NORM,
        [*add.inputs, weight],
        {"epsilon": norm.attributes["epsilon"].as_float()},
        domain=RUNTIME_DOMAIN,
        num_outputs=4,
        name=norm.name,
    )
    fused.outputs[1].name = fused.outputs[2].name = ""  # mean and deviation, which nobody reads
    graph.insert_before(add, fused)
    for old, new in ((norm.outputs[0], fused.outputs[0]), (total, fused.outputs[3])):
        name = old.name
        new.type, new.shape = old.type, old.shape
        ir.convenience.replace_all_uses_with(old, new)
        old.name = None
        new.name = name
    graph.remove([norm, add], safe=True)
