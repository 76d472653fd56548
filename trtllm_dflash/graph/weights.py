"""From a checkpoint's tensors to graph initializers: in place where the bytes fit, converted when read where not."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from trtllm_dflash.checkpoint.dequantize import dequantized, scalar
from trtllm_dflash.checkpoint.safetensors import TensorInfo
from trtllm_dflash.config.quantization import WeightFormat
from trtllm_dflash.graph.builder import GraphBuilder

_ONNX_DTYPES = {
    "BF16": ir.DataType.BFLOAT16,
    "F16": ir.DataType.FLOAT16,
    "F32": ir.DataType.FLOAT,
    "F8_E4M3": ir.DataType.FLOAT8E4M3FN,
    "U8": ir.DataType.FLOAT4E2M1,  # of a quantized weight: ONNX packs two codes a byte just as the checkpoint does
}


class WeightSource:
    """The tensors of one model, as initializers of type `dtype` called `<model>.<checkpoint name>`.

    `formats` are those of its quantized linears, by module: their codes keep their own types.
    """

    def __init__(
        self,
        model: str,
        tensors: Mapping[str, TensorInfo],
        dtype: ir.DataType,
        formats: Mapping[str, WeightFormat] | None = None,
    ) -> None:
        self._model = model
        self._tensors = tensors
        self._dtype = dtype
        self.formats = formats or {}

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def value(self, g: GraphBuilder, name: str, rows: np.ndarray | None = None, alias: str = "") -> ir.Value:
        """The initializer of tensor `name`, or of its `rows` (int64), which is called `<model>.<alias>`."""
        if rows is not None:
            return self._rows(g, name, rows, alias, self._dtype)
        return g.initializer(f"{self._model}.{name}", lambda: _tensor(self._tensors[name], self._dtype))

    def codes(self, g: GraphBuilder, name: str, rows: np.ndarray | None = None, alias: str = "") -> ir.Value:
        """Like `value`, of a quantized weight's codes or block scales, in the type that the checkpoint gives them."""
        info = self._tensors[name]
        if rows is not None:
            return self._rows(g, name, rows, alias, _ONNX_DTYPES[info.dtype])
        return g.initializer(f"{self._model}.{name}", lambda: _in_place(info))

    def number(self, name: str) -> float:
        """The number in the scale tensor `name`."""
        return scalar(self._tensors[name])

    def dequantized(self, g: GraphBuilder, module: str, rows: np.ndarray | None = None, alias: str = "") -> ir.Value:
        """The float32 numbers of a quantized linear's weight [out, in], converted when read."""
        name, row = f"{module}.weight", self.formats[module]
        packed = self._tensors[name]
        columns = packed.shape[1] * (2 if packed.dtype == "U8" else 1)
        shape = ir.Shape([packed.shape[0] if rows is None else len(rows), columns])

        def convert() -> ir.TensorProtocol:
            return ir.Tensor(dequantized(self._tensors, module, row, rows))

        called = f"{self._model}.{name if rows is None else alias}"
        return g.initializer(called, lambda: ir.LazyTensor(convert, ir.DataType.FLOAT, shape, name=called))

    def _rows(self, g: GraphBuilder, name: str, rows: np.ndarray, alias: str, dtype: ir.DataType) -> ir.Value:
        info = self._tensors[name]
        shape = ir.Shape([len(rows), *_logical(info)[1:]])

        def gather() -> ir.TensorProtocol:
            taken = info.array()[rows]
            if info.dtype == "U8":
                return ir.PackedTensor(taken.reshape(-1), dtype, shape=shape)
            return ir.Tensor(taken.astype(dtype.numpy()))

        return g.initializer(f"{self._model}.{alias}", lambda: ir.LazyTensor(gather, dtype, shape, name=alias))


def _tensor(info: TensorInfo, dtype: ir.DataType) -> ir.TensorProtocol:
    if _ONNX_DTYPES[info.dtype] == dtype:
        return _in_place(info)
    convert: Callable[[], ir.TensorProtocol] = lambda: ir.Tensor(info.array().astype(dtype.numpy()))  # noqa: E731
    # Lazy and not cached, so that a whole model is never held converted.
    return ir.LazyTensor(convert, dtype, ir.Shape(info.shape), name=info.name)


def _in_place(info: TensorInfo) -> ir.TensorProtocol:
    dtype, shape = _ONNX_DTYPES[info.dtype], ir.Shape(_logical(info))
    return ir.ExternalTensor(
        info.path.name, info.offset, info.nbytes, dtype, shape=shape, name=info.name, base_dir=info.path.parent
    )


def _logical(info: TensorInfo) -> tuple[int, ...]:
    """The shape in numbers: of packed codes, two a byte."""
    return (*info.shape[:-1], 2 * info.shape[-1]) if info.dtype == "U8" else info.shape
