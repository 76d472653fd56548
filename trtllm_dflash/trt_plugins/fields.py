"""The fields of a plugin as TensorRT has them: numbers, and bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from trtllm_dflash.graph.ops import OpSpec
from trtllm_dflash.trt.loader import import_tensorrt

if TYPE_CHECKING:
    import tensorrt_rtx as trt
else:
    trt = import_tensorrt()

_FIELD_TYPES = {
    int: (np.int32, trt.PluginFieldType.INT32),
    float: (np.float32, trt.PluginFieldType.FLOAT32),
}


def field_types(spec: OpSpec) -> dict[str, tuple[type, Any]]:
    """Return the fields of an operator's node, its attributes and its kernel's sizes and types:
    Python type and field type.
    """
    return {
        name: (python_type, _FIELD_TYPES[python_type][1])
        for name, python_type in spec.plugin_fields.items()
    }


def number_field(name: str, value: int | float) -> Any:
    """Return a field of one number."""
    dtype, field_type = _FIELD_TYPES[type(value)]
    return trt.PluginField(name, np.array([value], dtype), field_type)


def bytes_field(name: str, data: bytes) -> Any:
    """Return a field of bytes."""
    return trt.PluginField(name, np.frombuffer(data, np.int8), trt.PluginFieldType.CHAR)
