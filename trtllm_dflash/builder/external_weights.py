"""Moves a graph's weights into one .safetensors file, one tensor at a time.

The graph then has external tensors that point into the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from trtllm_dflash.checkpoint.writer import FileLayout, write_file

# Scalars and short index lists read better inside the graph, and cost nothing there.
INLINE_BYTES = 1024
_ALIGNMENT = 64  # of the first tensor: a whole cache line
_SAFETENSORS_DTYPES = {
    ir.DataType.FLOAT: "F32",
    ir.DataType.BFLOAT16: "BF16",
    ir.DataType.FLOAT16: "F16",
    ir.DataType.INT64: "I64",
    ir.DataType.INT32: "I32",
    ir.DataType.UINT8: "U8",
    ir.DataType.BOOL: "BOOL",
    ir.DataType.FLOAT8E4M3FN: "F8_E4M3",
    ir.DataType.FLOAT4E2M1: "F4",
}


def weights_of(model: ir.Model) -> list[ir.Value]:
    """Return the initializers that live outside the graph file.

    Those are a checkpoint's tensors, and whatever else is large.
    """
    return [value for value in model.graph.initializers.values() if _is_weight(_tensor(value))]


def move_weights(
    values: Sequence[ir.Value], path: Path, *, wrote: Callable[[int], None] = lambda _: None
) -> int:
    """Write the initializers to `path`, make each an external tensor, return the file's bytes.

    `wrote` gets the size of each tensor as it is written. This takes the memory of the largest
    tensor, converted.
    """
    tensors = {str(value.name): _tensor(value) for value in values}
    described = {
        name: (_SAFETENSORS_DTYPES[tensor.dtype], _sizes(tensor))
        for name, tensor in tensors.items()
    }
    layout = FileLayout.of(described, alignment=_ALIGNMENT)

    def buffers() -> Iterator[memoryview]:
        for value in values:
            name = str(value.name)
            tensor = tensors.pop(name)
            yield stored_bytes(tensor).data
            offset = layout.offsets[name]
            shape = ir.Shape(_sizes(tensor))
            value.const_value = ir.ExternalTensor(
                path.name,
                offset,
                tensor.nbytes,
                tensor.dtype,
                shape=shape,
                name=name,
                base_dir=path.parent,
            )
            if isinstance(tensor, ir.ExternalTensor):
                tensor.release()  # its memory map, whose pages would otherwise pile up
            wrote(tensor.nbytes)

    write_file(path, layout, buffers())
    return layout.nbytes


def stored_bytes(tensor: ir.TensorProtocol) -> np.ndarray:
    """Return a tensor's bytes as ONNX stores them, uint8 [nbytes].

    For an external tensor that is a memory map of its file.
    """
    if isinstance(tensor, ir.ExternalTensor):
        return np.memmap(
            tensor.path, np.uint8, "r", offset=tensor.offset or 0, shape=(tensor.nbytes,)
        )
    if tensor.dtype.bitwidth < 8:  # numpy() would have one element in each byte
        return np.frombuffer(tensor.tobytes(), np.uint8)
    return np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8)


def _sizes(tensor: ir.TensorProtocol) -> list[int]:
    return [int(size) for size in tensor.shape.numpy()]


def _is_weight(tensor: ir.TensorProtocol) -> bool:
    return isinstance(tensor, ir.ExternalTensor | ir.LazyTensor) or tensor.nbytes > INLINE_BYTES


def _tensor(value: ir.Value) -> ir.TensorProtocol:
    if value.const_value is None:
        raise ValueError(f"{value.name} is not an initializer")
    return value.const_value
