"""Run as a script: compiles a graph of one plugin node.

The parser must find libtensorrt_rtx.so, or it aborts.
"""

from __future__ import annotations

import io
from typing import Any

import onnx_ir as ir
import tensorrt_rtx as trt

from trtllm_dflash.builder.trt import Compiler
from trtllm_dflash.builder.trt_callbacks import BuilderLog


class Copy(  # type: ignore[misc]
    trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime
):
    """A plugin that would copy its input; only its build phase is used."""

    def __init__(self) -> None:
        for base in Copy.__bases__:
            base.__init__(self)
        self.plugin_name, self.plugin_version, self.plugin_namespace = "TestCopy", "1", ""
        self.num_outputs = 1

    def get_capability_interface(self, _: Any) -> Copy:
        return self

    def get_output_data_types(self, types: Any) -> Any:
        return types

    def get_output_shapes(self, inputs: Any, *_: Any) -> list[Any]:
        return [trt.DimsExprs(inputs[0])]

    def supports_format_combination(self, position: int, described: Any, _: int) -> bool:
        return bool(described[position].desc.format == trt.TensorFormat.LINEAR)

    def configure_plugin(self, *_: Any) -> None: ...

    def on_shape_change(self, *_: Any) -> None: ...

    def enqueue(self, *_: Any) -> None: ...

    def set_tactic(self, _: int) -> None: ...

    def attach_to_context(self, _: Any) -> Copy:
        return self

    def get_fields_to_serialize(self) -> Any:
        return trt.PluginFieldCollection([])

    def get_valid_tactics(self) -> list[int]:
        return [1]

    def get_workspace_size(self, *_: Any) -> int:
        return 0

    def clone(self) -> Copy:
        return Copy()


class CopyCreator(trt.IPluginCreatorV3One):  # type: ignore[misc]
    """The creator that the parser finds under the node's operator type."""

    def __init__(self) -> None:
        trt.IPluginCreatorV3One.__init__(self)
        self.name, self.plugin_version, self.plugin_namespace = "TestCopy", "1", ""
        self.field_names = trt.PluginFieldCollection([])

    def create_plugin(self, *_: Any) -> Copy:
        return Copy()


def main() -> None:
    """Print the bytes of the engine."""
    creator = CopyCreator()
    log = BuilderLog()
    builder = trt.Builder(log)
    trt.get_plugin_registry().register_creator(creator, "")
    x = ir.Value(name="x", shape=ir.Shape(["batch", 8]), type=ir.TensorType(ir.DataType.FLOAT))
    node = ir.node("TestCopy", [x], attributes={"plugin_version": "1", "plugin_namespace": ""})
    (y,) = node.outputs
    y.name, y.shape, y.type = "y", x.shape, x.type
    model = ir.Model(ir.Graph([x], [y], nodes=[node], opset_imports={"": 24}), ir_version=11)
    file = io.BytesIO()
    compiler = Compiler(log, model)
    compiler.compile(["sm120"], [{"x": ((1, 8), (2, 8), (4, 8))}], file, lambda *_: None)
    print(len(file.getvalue()))
    del builder


if __name__ == "__main__":
    main()
