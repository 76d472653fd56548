"""Work for processes in which TensorRT's parser finds its library: graphs of one DFlashMoE node,
weights in files.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from tests.plugins.moe_reference import Case, inputs
from tests.plugins.plugin_graphs import Layer, layer_log, plugin_layers
from trtllm_dflash.graph.builder import OPS_DOMAIN, OPSET, GraphBuilder
from trtllm_dflash.graph.kernel_specs import KernelVariant
from trtllm_dflash.graph.ops import MOE
from trtllm_dflash.graph.plugin_nodes import lower_to_plugins

ODD = 13  # bytes in front of each weight in its file: a checkpoint aligns nothing


@dataclass(frozen=True)
class Compiled:
    """The plugin layers; what each profile runs; which weights the engine holds byte for byte, and
    once.
    """

    layers: tuple[Layer, ...]
    engine_layers: frozenset[tuple[str, str]]
    weights_in_engine: frozenset[str]


def moe_model(case: Case, directory: Path) -> tuple[ir.Model, dict[str, bytes]]:
    """Return a graph whose weights lie in files of `directory`, and their bytes by name."""
    g, values, stored = GraphBuilder(), [], {}
    for name, array in inputs(case).items():
        dtype = ir.DataType.from_numpy(array.dtype)
        is_weight = name not in ("x", "router_logits")
        shape = ir.Shape(array.shape if is_weight else ("tokens", array.shape[1]))
        value = ir.Value(name=name, shape=shape, type=ir.TensorType(dtype))
        if is_weight:
            stored[name] = array.tobytes()
            (directory / name).write_bytes(b"x" * ODD + stored[name])
            value.const_value = ir.ExternalTensor(
                name, ODD, len(stored[name]), dtype, shape=shape, name=name, base_dir=directory
            )
        values.append(value)
    (out,) = MOE(g, *values, **case.fields)
    out.name, out.type = "out", ir.TensorType(ir.DataType.BFLOAT16)
    graph = ir.Graph(
        values[:2],
        [out],
        nodes=g.nodes,
        initializers=values[2:],
        opset_imports={"": OPSET, OPS_DOMAIN: 1},
        name="moe",
    )
    model = ir.Model(graph, ir_version=11)
    lower_to_plugins(model)
    return model, stored


def compile_moe(
    case: Case, directory: Path, arch: str, cubins: Mapping[KernelVariant, bytes]
) -> Compiled:
    """Compile such a graph for 1 to 300 tokens."""
    from trtllm_dflash.builder.trt import Compiler

    model, stored = moe_model(case, directory)
    log, file = layer_log(), io.BytesIO()
    log.layers.clear()
    compiler = Compiler(log, model, cubins)
    shapes = {
        name: ((1, width), (8, width), (300, width))
        for name, width in (("x", case.hidden), ("router_logits", case.experts))
    }
    compiler.compile([arch], [shapes], file, lambda *_: None)
    engine = file.getvalue()
    found = frozenset(name for name, data in stored.items() if engine.count(data) == 1)
    return Compiled(plugin_layers(compiler._network), frozenset(log.layers), found)


def refused_moe(
    case: Case,
    directory: Path,
    cubins: Mapping[KernelVariant, bytes],
    changes: Mapping[str, np.ndarray | None],
) -> str:
    """Return what the build of such a graph dies of when weights are others, or left out; "" if it
    does not.
    """
    from trtllm_dflash.builder.trt import Compiler
    from trtllm_dflash.builder.trt_callbacks import BuilderLog
    from trtllm_dflash.errors import DFlashError

    model, _ = moe_model(case, directory)
    node = next(node for node in model.graph if node.op_type == MOE.name)
    for index, value in enumerate(node.inputs):
        assert value is not None
        if value.name in changes:
            array = changes[str(value.name)]
            if array is None:
                node.resize_inputs(index)
                break
            value.const_value = ir.tensor(array, name=value.name)
            value.shape, value.type = (
                ir.Shape(array.shape),
                ir.TensorType(ir.DataType.from_numpy(array.dtype)),
            )
    for name in [name for name, value in model.graph.initializers.items() if not value.uses()]:
        del model.graph.initializers[name]
    try:
        shapes = {
            name: ((1, width),) * 3
            for name, width in (("x", case.hidden), ("router_logits", case.experts))
        }
        Compiler(BuilderLog(), model, cubins).compile(
            ["sm120"], [shapes], io.BytesIO(), lambda *_: None
        )
    except DFlashError as error:
        return f"{type(error).__name__}: {error}"
    return ""
