"""A CPU engine's step, cut down to its target and with what is computed inside as outputs.

The accept operator, the drafter and what only they read are left out; weights stay in the engine's
file.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes import common

from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.errors import EngineError

HEAD = "lm_head"
_ACCEPT = "DFlashAccept"
_PREFIX, _SUFFIX = "target.", ".weight"


@dataclass(frozen=True)
class Linear:
    """The product of a linear layer: its output [N, size]."""

    output: ir.Value
    size: int


@dataclass(frozen=True)
class TargetGraph:
    """The graph of a step, its logits [B, R, V], and the target's linears but for the head, by
    checkpoint name.
    """

    model: ir.Model
    logits: ir.Value
    linears: dict[str, Linear]

    @classmethod
    def load(cls, path: Path) -> TargetGraph:
        """Read a model.onnx; one without logits raises EngineError."""
        model = ir.load(path)
        accept = next((node for node in model.graph if node.op_type == _ACCEPT), None)
        logits = accept.inputs[0] if accept else None
        if logits is None:
            raise EngineError(
                f"{path}: no {_ACCEPT} node with logits in this graph. Build the engine again."
            )
        behind_logits = _computed_before(logits)
        found = (
            _linear(node)
            for node in model.graph
            if node.op_type in {"Gemm", "MatMul"} and node in behind_logits
        )
        linears = {
            name: linear
            for name, linear in filter(None, found)
            if not _leads_to(linear.output, logits)
        }
        return cls(model, logits, linears)

    def serialized(self, config: EngineConfig, linears: Collection[str]) -> bytes:
        """The ONNX model that gives the logits, these linears and the target's caches. Call it
        once: `model` changes.

        Its external data is to be found in the folder of the file that was read.
        """
        graph = self.model.graph
        caches = {
            port.name
            for port in config.ports
            if port.direction == "output" and port.cache == "target"
        }
        kept = [value for value in graph.outputs if value.name in caches]
        wanted = [self.logits, *(self.linears[name].output for name in linears)]
        for value in wanted:
            value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), None
        graph.outputs.clear()
        graph.outputs.extend([*kept, *wanted])
        common.RemoveUnusedNodesPass()(self.model)
        for value in [value for value in graph.inputs if not value.uses()]:
            graph.inputs.remove(value)
        model: bytes = ir.to_proto(self.model).SerializeToString()
        return model


def _computed_before(value: ir.Value) -> set[ir.Node]:
    """The nodes that a value depends on: the target's, not the drafter's, which may use the
    target's head too.
    """
    found: set[ir.Node] = set()
    waiting = [value.producer()]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found.add(node)
            waiting += [operand.producer() for operand in node.inputs if operand is not None]
    return found


def _linear(node: ir.Node) -> tuple[str, Linear] | None:
    """A product with one of the target's weights, and that weight's name in the checkpoint."""
    weight = node.inputs[1]
    if weight is None or not weight.is_initializer() or weight.shape is None:
        return None
    name = str(weight.name)
    if not (name.startswith(_PREFIX) and name.endswith(_SUFFIX)):
        return None
    transposed = "transB" in node.attributes and node.attributes["transB"].as_int() == 1
    size = weight.shape[0 if transposed else -1]
    assert isinstance(size, int)
    return name.removeprefix(_PREFIX).removesuffix(_SUFFIX), Linear(node.outputs[0], size)


def _leads_to(value: ir.Value, logits: ir.Value) -> bool:
    """Whether `logits` are `value` in another shape or type."""
    while logits is not value:
        producer = logits.producer()
        if (
            producer is None
            or producer.op_type not in {"Reshape", "Cast"}
            or producer.inputs[0] is None
        ):
            return False
        logits = producer.inputs[0]
    return True
