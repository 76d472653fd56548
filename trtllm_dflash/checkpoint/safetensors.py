"""Reading of untrusted .safetensors files: the header is checked completely before one byte of data
is looked at.

Sizes and offsets come from whoever made the file. All below is arithmetic on Python integers, which
cannot overflow, against the size of the file on disk, so a header that claims a terabyte costs
nothing and says so.
"""

from __future__ import annotations

import math
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import ml_dtypes
import numpy as np
import numpy.typing as npt

from trtllm_dflash.errors import CheckpointError
from trtllm_dflash.models.hf_config import parse_json, quote

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
MAX_RANK = 8
MAX_NAME_LENGTH = 512

# Every dtype of the format -> bits per element. A known size does not make a dtype usable: see
# NUMPY_DTYPES.
DTYPE_BITS: Mapping[str, int] = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip

WEIGHT_DTYPES = ("F32", "F16", "BF16")
NUMPY_DTYPES: Mapping[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    # Of quantized weights: numbers without their scales, and pairs of 4-bit codes.
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "U8": np.dtype(np.uint8),
}


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies: `offset` is absolute in the file `path`, `nbytes` equals shape times
    dtype.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    nbytes: int

    def array(self) -> npt.NDArray[Any]:
        """Return a read-only view of the file's bytes, shape `shape`; only dtypes in
        NUMPY_DTYPES.
        """
        return np.memmap(
            self.path, dtype=self.numpy_dtype, mode="r", offset=self.offset, shape=self.shape
        )

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The numpy type of the elements; CheckpointError for a dtype that weights cannot have
        here.
        """
        if self.dtype not in NUMPY_DTYPES:
            raise CheckpointError(
                f"{self.path}: tensor {self.name} is {self.dtype}, and weights can be"
                f" {', '.join(NUMPY_DTYPES)}. Use a BF16, F16 or F32 checkpoint, or one that is"
                " quantized to FP8 or NVFP4."
            )
        return NUMPY_DTYPES[self.dtype]


def read_tensor_infos(path: Path) -> dict[str, TensorInfo]:
    """Check a file's header against its size on disk and return its tensors by name; memory: the
    header.
    """
    header, data_start, file_size = _read_header(path)
    metadata = header.pop("__metadata__", None)
    if metadata is not None and not _is_string_map(metadata):
        _fail(path, "__metadata__ must map strings to strings.")
    infos = {
        name: _tensor_info(path, name, entry, data_start, file_size)
        for name, entry in header.items()
    }
    _check_tiling(path, infos, data_start, file_size)
    return infos


def _read_header(path: Path) -> tuple[dict[str, Any], int, int]:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(
                f"{path}: this is not a regular file, and weights are read from nothing else."
            )
        with path.open("rb") as file:
            prefix = file.read(8)
            if len(prefix) < 8:
                _fail(
                    path,
                    f"the file has {len(prefix)} bytes, too few for the 8-byte header length. It is"
                    " truncated.",
                )
            length = int.from_bytes(prefix, "little")
            limit = min(MAX_HEADER_BYTES, status.st_size - 8)
            if not 2 <= length <= limit:
                _fail(
                    path,
                    f"the header claims {length} bytes, expected 2 to {limit} in a file of"
                    f" {status.st_size} bytes.",
                )
            text = file.read(length)
    except OSError as cause:
        raise CheckpointError(f"{path}: cannot be read ({cause.strerror}).") from cause
    return parse_json(text, f"{path} (header)", error=CheckpointError), 8 + length, status.st_size


def _tensor_info(
    path: Path, name: str, entry: object, data_start: int, file_size: int
) -> TensorInfo:
    if not name.isprintable() or not 0 < len(name) <= MAX_NAME_LENGTH:
        _fail(
            path,
            f"a tensor is named {quote(name)}, expected 1 to {MAX_NAME_LENGTH} printable"
            " characters.",
        )
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        _fail(
            path,
            f"tensor {name}: an entry has exactly dtype, shape and data_offsets; this one does"
            " not.",
        )
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        _fail(path, f"tensor {name}: unknown dtype {quote(dtype)}.")
    if not _is_size_list(shape) or len(shape) > MAX_RANK:
        _fail(
            path,
            f"tensor {name}: shape {quote(shape)} is not a list of at most {MAX_RANK} sizes, each"
            " an integer from 0.",
        )
    if not _is_size_list(offsets) or len(offsets) != 2:
        _fail(
            path, f"tensor {name}: data_offsets {quote(offsets)} is not a pair of integers from 0."
        )
    begin, end = offsets
    bits = math.prod(shape) * DTYPE_BITS[dtype]
    if (end - begin) * 8 != bits:
        _fail(
            path,
            f"tensor {name}: data_offsets span {end - begin} bytes, but {dtype} {shape} needs"
            f" {-(-bits // 8)}.",
        )
    if data_start + end > file_size:
        _fail(
            path,
            f"tensor {name}: its data ends at byte {data_start + end}, but the file has"
            f" {file_size}.",
        )
    return TensorInfo(name, dtype, tuple(shape), path, data_start + begin, end - begin)


def _check_tiling(
    path: Path, infos: Mapping[str, TensorInfo], data_start: int, file_size: int
) -> None:
    """Tensors must cover the data exactly: an overlap aliases weights, a hole hides bytes that
    nobody accounts for.
    """
    end, previous = data_start, "the header"
    for info in sorted(infos.values(), key=lambda info: (info.offset, info.nbytes)):
        if info.offset < end:
            _fail(
                path,
                f"tensor {info.name} begins at byte {info.offset}, before {previous} ends at {end}:"
                " they overlap.",
            )
        if info.offset > end:
            _fail(
                path,
                f"{info.offset - end} bytes between {previous} and tensor {info.name} belong to no"
                " tensor.",
            )
        end, previous = info.offset + info.nbytes, f"tensor {info.name}"
    if end != file_size:
        _fail(path, f"{file_size - end} bytes after {previous} belong to no tensor.")


def _is_size_list(value: object) -> bool:
    return isinstance(value, list) and all(
        type(size) is int and 0 <= size < 1 << 63 for size in value
    )


def _is_string_map(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(entry, str) for entry in value.values())


def _fail(path: Path, problem: str) -> NoReturn:
    raise CheckpointError(
        f"{path}: damaged or hostile safetensors file: {problem} Get an intact copy of the file."
    )
