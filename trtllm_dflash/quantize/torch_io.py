"""Tensors from files to torch and back, without a memory map that keeps their pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from trtllm_dflash.checkpoint.safetensors import TensorInfo

TORCH_DTYPES: Mapping[str, torch.dtype] = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
STORED_DTYPES: Mapping[torch.dtype, str] = {
    dtype: name for name, dtype in TORCH_DTYPES.items()
} | {
    torch.float8_e4m3fn: "F8_E4M3",
    torch.uint8: "U8",
}


def read_tensor(info: TensorInfo) -> torch.Tensor:
    """Read a weight into memory of its own."""
    data = np.fromfile(info.path, np.uint8, count=info.nbytes, offset=info.offset)
    return torch.from_numpy(data).view(TORCH_DTYPES[info.dtype]).reshape(info.shape)


def read_rows(info: TensorInfo, rows: Sequence[int] | slice) -> torch.Tensor:
    """Read some rows of a matrix, [rows, columns]."""
    data = np.array(info.array()[rows if isinstance(rows, slice) else np.asarray(rows)])
    return torch.from_numpy(data.view(np.uint8)).view(TORCH_DTYPES[info.dtype])


def raw_bytes(tensor: torch.Tensor) -> memoryview:
    """Return a tensor's elements as bytes, not copied."""
    return tensor.contiguous().flatten().view(torch.uint8).numpy().data
