"""From a checkpoint's tensors to graph initializers: in place where the bytes fit, converted when read where not."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from trtllm_dflash.checkpoint.safetensors import TensorInfo
from trtllm_dflash.graph.builder import GraphBuilder

_ONNX_DTYPES = {"BF16": ir.DataType.BFLOAT16, "F16": ir.DataType.FLOAT16, "F32": ir.DataType.FLOAT}


class WeightSource:
    """The tensors of one model, as initializers of type `dtype` called `<model>.<checkpoint name>`."""

    def __init__(self, model: str, tensors: Mapping[str, TensorInfo], dtype: ir.DataType) -> None:
        self._model = model
        self._tensors = tensors
        self._dtype = dtype

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def value(self, g: GraphBuilder, name: str) -> ir.Value:
        """The initializer of tensor `name`."""
        return g.initializer(f"{self._model}.{name}", lambda: _tensor(self._tensors[name], self._dtype))

    def rows(self, g: GraphBuilder, name: str, ids: np.ndarray, alias: str) -> ir.Value:
        """The initializer of rows `ids` of tensor `name`, called `<model>.<alias>`."""
        info = self._tensors[name]

        def gathered() -> ir.TensorProtocol:
            return ir.Tensor(info.array()[ids].astype(self._dtype.numpy()))

        shape = ir.Shape([len(ids), *info.shape[1:]])
        return g.initializer(f"{self._model}.{alias}", lambda: ir.LazyTensor(gathered, self._dtype, shape, name=alias))


def _tensor(info: TensorInfo, dtype: ir.DataType) -> ir.TensorProtocol:
    stored, shape = _ONNX_DTYPES[info.dtype], ir.Shape(info.shape)
    if stored == dtype:
        return ir.ExternalTensor(
            info.path.name, info.offset, info.nbytes, stored, shape=shape, name=info.name, base_dir=info.path.parent
        )
    # Lazy and not cached, so that a whole model is never held converted.
    return ir.LazyTensor(lambda: ir.Tensor(info.array().astype(dtype.numpy())), dtype, shape, name=info.name)
