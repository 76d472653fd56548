"""From a checkpoint's tensors to graph initializers: in place where the bytes fit, converted when
read where not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from trtllm_dflash.checkpoint.dequantize import dequantized, row_scales, scalar
from trtllm_dflash.checkpoint.formats import FP8_BLOCK_SIZE, WeightFormat
from trtllm_dflash.checkpoint.safetensors import TensorInfo
from trtllm_dflash.checkpoint.stored_layouts import span_of
from trtllm_dflash.graph.builder import GraphBuilder

FP8_PER_INT32 = 4  # codes of FP8 in an int32 of a plugin's weights
_ONNX_DTYPES = {
    "BF16": ir.DataType.BFLOAT16,
    "F16": ir.DataType.FLOAT16,
    "F32": ir.DataType.FLOAT,
    "F8_E4M3": ir.DataType.FLOAT8E4M3FN,
    "U8": (
        ir.DataType.FLOAT4E2M1
    ),  # of a quantized weight: ONNX packs two codes a byte just as the checkpoint does
}


class WeightSource:
    """The tensors of one model, by name, as initializers of type `dtype` called
    `<model>.<checkpoint name>`.

    `formats` are those of its quantized linears, by module: their codes keep their own types.
    `padded` names tables [rows, columns] that have one more row, of zeros.
    """

    def __init__(
        self,
        model: str,
        tensors: Mapping[str, TensorInfo],
        dtype: ir.DataType,
        formats: Mapping[str, WeightFormat] | None = None,
        padded: Collection[str] = (),
    ) -> None:
        self._model = model
        self.tensors = tensors
        self._dtype = dtype
        self.formats = formats or {}
        self.padded = padded

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def value(
        self, g: GraphBuilder, name: str, rows: np.ndarray | None = None, alias: str = ""
    ) -> ir.Value:
        """Return the initializer of tensor `name`, or of its `rows` (int64), which is called
        `<model>.<alias>`.
        """
        if rows is not None:
            return self._rows(g, name, rows, alias, self._dtype)
        if name in self.padded:
            return self._with_padding(g, name)
        return g.initializer(
            f"{self._model}.{name}", lambda: _tensor(self.tensors[name], self._dtype)
        )

    def _with_padding(self, g: GraphBuilder, name: str) -> ir.Value:
        info = self.tensors[name]
        rows, columns = info.shape

        def pad() -> np.ndarray:
            table = np.zeros((rows + 1, columns), self._dtype.numpy())
            table[:rows] = info.array()
            return table

        return self.lazy(g, name, self._dtype, (rows + 1, columns), pad)

    def wide(self, g: GraphBuilder, name: str, offset: float = 0.0) -> ir.Value:
        """Return tensor `name` plus `offset` as a float32 initializer, whatever the model's type.

        A sum is made when it is read: in a narrow type it would be another weight.
        """
        info = self.tensors[name]
        if not offset:
            called = f"{self._model}.{name}"
            return g.initializer(called, lambda: _tensor(info, ir.DataType.FLOAT))

        def add() -> np.ndarray:
            total: np.ndarray = info.array().astype(np.float32) + np.float32(offset)
            return total

        return self.lazy(g, name, ir.DataType.FLOAT, info.shape, add)

    def packed(
        self, g: GraphBuilder, name: str, rows: np.ndarray | None = None, alias: str = ""
    ) -> ir.Value:
        """Like `value`, of a quantized weight's codes or block scales, in the type that the
        checkpoint gives them.
        """
        info = self.tensors[name]
        if rows is not None:
            return self._rows(g, name, rows, alias, _ONNX_DTYPES[info.dtype])
        return g.initializer(f"{self._model}.{name}", lambda: _in_place(info))

    def mapped(
        self, g: GraphBuilder, name: str, dtype: ir.DataType, shape: Sequence[int]
    ) -> ir.Value:
        """Return the bytes of tensor `name` taken for another type and shape."""
        return g.initializer(
            f"{self._model}.{name}", lambda: _in_place(self.tensors[name], dtype, shape)
        )

    def lazy(
        self,
        g: GraphBuilder,
        name: str,
        dtype: ir.DataType,
        shape: Sequence[int],
        make: Callable[[], np.ndarray],
    ) -> ir.Value:
        """Return the initializer `<model>.<name>` that `make` computes whenever it is read; two
        4-bit codes a byte.
        """

        def tensor() -> ir.TensorProtocol:
            if dtype.bitwidth < 8:
                return ir.PackedTensor(make().reshape(-1), dtype, shape=ir.Shape(shape))
            return ir.Tensor(make(), dtype=dtype)

        called = f"{self._model}.{name}"
        # Lazy and not cached, so that a whole model is never held converted.
        return g.initializer(
            called, lambda: ir.LazyTensor(tensor, dtype, ir.Shape(shape), name=called)
        )

    def span(
        self,
        g: GraphBuilder,
        called: str,
        names: Sequence[str],
        dtype: ir.DataType,
        shape: Sequence[int],
    ) -> ir.Value | None:
        """Return the bytes of tensors that lie one behind the other, taken for a type and shape.

        None if they lie otherwise. The initializer is `<model>.<called>`.
        """
        whole = span_of([self.tensors[name] for name in names])
        if whole is None:
            return None
        made = whole
        return g.initializer(f"{self._model}.{called}", lambda: _in_place(made, dtype, shape))

    def block_scales(self, g: GraphBuilder, module: str) -> ir.Value:
        """Return a quantized linear's scales of blocks, float32 [rows, columns] of blocks."""
        name = f"{module}.weight_scale"
        info = self.tensors[name]
        rows, columns = self.tensors[f"{module}.weight"].shape
        shape = (-(-rows // FP8_BLOCK_SIZE), -(-columns // FP8_BLOCK_SIZE))
        if info.dtype == "F32":
            return self.mapped(g, name, ir.DataType.FLOAT, shape)

        def make() -> np.ndarray:
            return info.array().astype(np.float32).reshape(shape)

        return self.lazy(g, name, ir.DataType.FLOAT, shape, make)

    def scalar(self, name: str) -> float:
        """Return the number in the scale tensor `name`."""
        return scalar(self.tensors[name])

    def array(self, module: str) -> np.ndarray:
        """Return the weight of a linear: float32 if it is quantized, else as it is stored."""
        if module in self.formats:
            return dequantized(self.tensors, module, self.formats[module])
        return self.tensors[f"{module}.weight"].array()

    def row_scales(
        self, g: GraphBuilder, module: str, rows: np.ndarray | None = None, alias: str = ""
    ) -> ir.Value | float:
        """Return a quantized linear's scale: a number, or float32 [out] of rows with their own."""
        name = f"{module}.weight_scale"
        info = self.tensors[name]
        if math.prod(info.shape) == 1:
            return self.scalar(name)
        num_rows = self.tensors[f"{module}.weight"].shape[0]
        chosen = np.arange(num_rows) if rows is None else rows
        called = name if rows is None else f"{alias}_scale"
        return self.lazy(
            g,
            called,
            ir.DataType.FLOAT,
            (len(chosen),),
            lambda: row_scales(info, num_rows)[chosen],
        )

    def dequantized(
        self, g: GraphBuilder, module: str, rows: np.ndarray | None = None, alias: str = ""
    ) -> ir.Value:
        """Return a quantized linear's weight [out, in], converted when read.

        The numbers are computed in float32 and rounded to the initializers' type.
        """
        name = f"{module}.weight"
        row = self.formats[module]
        num_rows, columns = _logical(self.tensors[name])
        shape = (num_rows if rows is None else len(rows), columns)
        called = name if rows is None else alias
        return self.lazy(
            g,
            called,
            self._dtype,
            shape,
            lambda: dequantized(self.tensors, module, row, rows).astype(
                self._dtype.numpy(), copy=False
            ),
        )

    def _rows(
        self, g: GraphBuilder, name: str, rows: np.ndarray, alias: str, dtype: ir.DataType
    ) -> ir.Value:
        info = self.tensors[name]

        def gather() -> np.ndarray:
            taken: np.ndarray = info.array()[rows]
            return taken if info.dtype == "U8" else taken.astype(dtype.numpy())

        return self.lazy(g, alias, dtype, (len(rows), *_logical(info)[1:]), gather)


def _tensor(info: TensorInfo, dtype: ir.DataType) -> ir.TensorProtocol:
    if _ONNX_DTYPES[info.dtype] == dtype:
        return _in_place(info)

    def convert() -> ir.TensorProtocol:
        return ir.Tensor(info.array().astype(dtype.numpy()))

    # Lazy and not cached, so that a whole model is never held converted.
    return ir.LazyTensor(convert, dtype, ir.Shape(info.shape), name=info.name)


def _in_place(
    info: TensorInfo, dtype: ir.DataType | None = None, shape: Sequence[int] | None = None
) -> ir.TensorProtocol:
    dtype, sizes = dtype or _ONNX_DTYPES[info.dtype], ir.Shape(shape or _logical(info))
    return ir.ExternalTensor(
        info.path.name,
        info.offset,
        info.nbytes,
        dtype,
        shape=sizes,
        name=info.name,
        base_dir=info.path.parent,
    )


def _logical(info: TensorInfo) -> tuple[int, ...]:
    """Return the shape in elements: packed FP4 has two a byte."""
    return (*info.shape[:-1], 2 * info.shape[-1]) if info.dtype == "U8" else info.shape
