"""The step graph cut at its plugins: levels of ONNX Runtime sessions and plugin nodes in turn.

What lies between the plugins runs in float32. A GPU's graph has bfloat16 there, which ONNX
Runtime's CPU lacks, so its types are widened. Nothing is rounded but what plugins read and write.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from trtllm_dflash.graph.builder import OPS_DOMAIN
from trtllm_dflash.graph.ops import OPS

_WIDENED = {TensorProto.BFLOAT16: TensorProto.FLOAT}
_ORT_TYPES = {
    "tensor(float)": TensorProto.FLOAT,
    "tensor(int64)": TensorProto.INT64,
    "tensor(int32)": TensorProto.INT32,
    "tensor(bool)": TensorProto.BOOL,
    "tensor(float8e4m3fn)": TensorProto.FLOAT8E4M3FN,
}


@dataclass
class Segment:
    """Nodes of one level that ONNX Runtime runs, and the values that go in and out."""

    session: ort.InferenceSession
    inputs: list[str]
    outputs: list[str]


@dataclass
class Level:
    """A segment, then plugins that need its results and not each other's."""

    segment: Segment | None = None
    plugins: list[onnx.NodeProto] = field(default_factory=list)


@dataclass
class CutGraph:
    """All levels in order, and the constants that plugins read."""

    inputs: list[str]
    levels: list[Level]
    constants: dict[str, np.ndarray]


def cut(model: onnx.ModelProto) -> CutGraph:
    """Cut a step graph with plugin nodes; float inputs of the graph are the plugins' alone."""
    constants = {
        tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer
    }
    _widen(model)
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    places = _places([*(value.name for value in graph.input), *weights], graph.node)
    count = 1 + max(places.values())
    segments: list[list[onnx.NodeProto]] = [[] for _ in range(count)]
    levels = [Level() for _ in range(count)]
    for node in graph.node:
        at = _place_of(node, places)
        (levels[at].plugins if _is_plugin(node) else segments[at]).append(node)
    cutter = _Cutter(model, weights, segments, levels)
    for at in range(count):
        if segments[at]:
            levels[at].segment = cutter.segment(at)
    read = cutter.read_by_plugins
    return CutGraph(
        [value.name for value in graph.input],
        levels,
        {name: array for name, array in constants.items() if name in read},
    )


def _is_plugin(node: onnx.NodeProto) -> bool:
    return bool(node.domain == OPS_DOMAIN)


def _places(given: list[str], nodes: list[onnx.NodeProto]) -> dict[str, int]:
    """Return the level in which each value is there: a plugin's results are there in the next."""
    places = dict.fromkeys(given, 0)
    for node in nodes:
        at = _place_of(node, places) + int(_is_plugin(node))
        places.update(dict.fromkeys(node.output, at))
    return places


def _place_of(node: onnx.NodeProto, places: dict[str, int]) -> int:
    return max((places[name] for name in node.input if name), default=0)


class _Cutter:
    """Makes sessions level by level; `types` are of all values that are known so far."""

    def __init__(
        self,
        model: onnx.ModelProto,
        weights: dict[str, TensorProto],
        segments: list[list[onnx.NodeProto]],
        levels: list[Level],
    ) -> None:
        self._model = model
        self._weights = weights
        self._segments = segments
        self._types = {value.name: value for value in model.graph.input}
        self._wanted = {value.name for value in model.graph.output}
        plugins = [node for level in levels for node in level.plugins]
        self.read_by_plugins = {name for node in plugins for name in node.input}
        self._wanted |= self.read_by_plugins
        for node in plugins:
            for name, tensor in zip(node.output, OPS[node.op_type].outputs, strict=True):
                known = {"int64": TensorProto.INT64, "int32": TensorProto.INT32}
                self._add(name, known.get(tensor.dtype, TensorProto.FLOAT))

    def segment(self, at: int) -> Segment:
        nodes = self._segments[at]
        made = [name for node in nodes for name in node.output if name]
        read = {name for node in nodes for name in node.input if name} - {*made}
        elsewhere = self._read_elsewhere(at)
        outputs = [name for name in made if name in self._wanted or name in elsewhere]
        inputs = sorted(read - self._weights.keys())
        graph = helper.make_graph(
            nodes,
            f"level {at}",
            [self._types[name] for name in inputs],
            [onnx.ValueInfoProto(name=name) for name in outputs],
            [self._weights[name] for name in sorted(read & self._weights.keys())],
        )
        opsets = [one for one in self._model.opset_import if one.domain != OPS_DOMAIN]
        model = helper.make_model(
            graph,
            opset_imports=opsets,
            ir_version=self._model.ir_version,
            functions=self._model.functions,
        )
        session = _session(model)
        for output in session.get_outputs():
            self._add(output.name, _ORT_TYPES[output.type])
        return Segment(session, inputs, outputs)

    def _read_elsewhere(self, at: int) -> set[str]:
        found: set[str] = set()
        for other, nodes in enumerate(self._segments):
            if other != at:
                found.update(*(node.input for node in nodes))
        return found

    def _add(self, name: str, element: int) -> None:
        self._types[name] = helper.make_tensor_value_info(name, element, None)


def _session(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    # Its rewrites of quantized pairs lack kernels on the CPU.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _widen(model: onnx.ModelProto) -> None:
    """Make everything float32 that is bfloat16; plugins convert what they read themselves."""
    graph = model.graph
    for index, tensor in enumerate(graph.initializer):
        if tensor.data_type in _WIDENED:
            graph.initializer[index].CopyFrom(_widened(tensor))
    for value in (*graph.input, *graph.output):
        kind = value.type.tensor_type
        kind.elem_type = _WIDENED.get(kind.elem_type, kind.elem_type)
    del graph.value_info[:]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name in ("to", "output_dtype"):
                attribute.i = _WIDENED.get(attribute.i, attribute.i)
            elif attribute.t.data_type in _WIDENED:
                attribute.t.CopyFrom(_widened(attribute.t))


def _widened(tensor: TensorProto) -> TensorProto:
    return numpy_helper.from_array(
        numpy_helper.to_array(tensor).astype(np.float32), tensor.name
    )
