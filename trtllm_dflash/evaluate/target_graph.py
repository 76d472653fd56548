"""A CPU engine's step, reduced to its target, with inner values as outputs.

The accept operator, the drafter and their inputs are left out. Weights stay in the engine's file.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes import common

from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.engine_dir.files import JOINED, JOINED_COLUMNS
from trtllm_dflash.engine_dir.io_tensors import HISTORY
from trtllm_dflash.errors import EngineError
from trtllm_dflash.graph.column_split import split_node

HEAD = "lm_head"
_ACCEPT = "DFlashAccept"
_PREFIX = "target."
_SUFFIX = ".weight"
_PRODUCTS = {"Gemm", "MatMul", "MatMulNBits"}


@dataclass(frozen=True)
class Linear:
    """The product of a linear layer: its output [N, size]."""

    output: ir.Value
    size: int


@dataclass(frozen=True)
class TargetGraph:
    """The graph of a step: its logits [B, R, V], and the target's linears by checkpoint name.

    The head is not among the linears.
    """

    model: ir.Model
    logits: ir.Value
    linears: dict[str, Linear]

    @classmethod
    def load(cls, path: Path) -> TargetGraph:
        """Read a model.onnx.

        Raises:
            EngineError: for one without logits, or of an earlier version.
        """
        model = ir.load(path)
        accept = next((node for node in model.graph if node.op_type == _ACCEPT), None)
        logits = accept.inputs[0] if accept else None
        if logits is None:
            raise EngineError(
                f"{path}: no {_ACCEPT} node with logits in this graph. Build the engine again."
            )
        target_nodes = _nodes_before(logits)
        linears: dict[str, Linear] = {}
        for node in list(model.graph):
            if node.op_type not in _PRODUCTS or node not in target_nodes:
                continue
            linears |= _named_linears(node)
        linears = {
            name: linear
            for name, linear in linears.items()
            if not _leads_to(linear.output, logits)
        }
        return cls(model, logits, linears)

    def serialized(self, config: EngineConfig, linears: Collection[str]) -> bytes:
        """Return an ONNX model of the logits, these linears and the target's caches.

        Call it once: `model` changes. Its external data is in the folder of the file that was read.
        """
        graph = self.model.graph
        caches = {
            port.name
            for port in config.io
            if port.direction == "output" and port.cache == "target" and port.aliases != HISTORY
        }
        kept = [value for value in graph.outputs if value.name in caches]
        wanted = [self.logits, *(self.linears[name].output for name in linears)]
        for value in wanted:
            value.type = ir.TensorType(ir.DataType.FLOAT)
            value.shape = None
        graph.outputs.clear()
        graph.outputs.extend([*kept, *wanted])
        common.RemoveUnusedNodesPass()(self.model)
        for value in [value for value in graph.inputs if not value.uses()]:
            graph.inputs.remove(value)
        model: bytes = ir.to_proto(self.model).SerializeToString()
        return model


def _nodes_before(value: ir.Value) -> set[ir.Node]:
    """Return the nodes that a value depends on.

    For the logits these are the target's. The drafter's are not, although it may use the same head.
    """
    found: set[ir.Node] = set()
    waiting = [value.producer()]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found.add(node)
            waiting += [operand.producer() for operand in node.inputs if operand is not None]
    return found


def _named_linears(node: ir.Node) -> dict[str, Linear]:
    """Return the linears of the target in a product, by their names in the checkpoint.

    There are none in other products, and several where some of one input are joined.
    """
    weight = node.inputs[1]
    if weight is None or not weight.is_initializer() or weight.shape is None:
        return {}
    name = str(weight.name)
    if not (name.startswith(_PREFIX) and name.endswith(_SUFFIX)):
        return {}
    modules = [part.removeprefix(_PREFIX) for part in name.removesuffix(_SUFFIX).split(JOINED)]
    transposed = "transB" in node.attributes and node.attributes["transB"].as_int() == 1
    rows = weight.shape[0 if transposed or "N" in node.attributes else -1]
    assert isinstance(rows, int)
    if len(modules) == 1:
        return {modules[0]: Linear(node.outputs[0], rows)}
    known = node.metadata_props.get(JOINED_COLUMNS)
    if known is None:
        raise EngineError(
            f"{name}: how its columns are shared is not in this graph. Build the engine again."
        )
    columns = [int(size) for size in known.split(JOINED)]
    split = _split(node, columns)
    return {
        module: Linear(output, size)
        for module, output, size in zip(modules, split.outputs, columns, strict=True)
    }


def _split(product: ir.Node, columns: list[int]) -> ir.Node:
    """Return a new node that takes a product [N, sum of `columns`] apart.

    The step itself may turn all parts at once, and never have them apart.
    """
    name = f"{product.name}/columns"
    graph = product.graph
    assert isinstance(graph, ir.Graph)
    split = split_node(graph, product.outputs[0], columns, name)
    for number, output in enumerate(split.outputs):
        output.name = f"{name}.{number}"
    graph.insert_after(product, split)
    return split


def _leads_to(value: ir.Value, logits: ir.Value) -> bool:
    """Return whether `logits` are `value` in another shape or type."""
    while logits is not value:
        producer = logits.producer()
        if producer is None or producer.op_type not in {"Reshape", "Cast"}:
            return False
        if producer.inputs[0] is None:
            return False
        logits = producer.inputs[0]
    return True
