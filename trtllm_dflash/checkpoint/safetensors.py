"""Reading of untrusted .safetensors files: the header is checked before any data is looked at.

The safetensors package decides what a valid file is. Where each tensor lies, it does not say: that
is read here, since weights are used in place. A header that claims a terabyte costs nothing.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from trtllm_dflash.checkpoint.damage import find_damage, find_oddity
from trtllm_dflash.checkpoint.dtypes import NUMPY_DTYPES
from trtllm_dflash.checkpoint.file_types import check_file_type
from trtllm_dflash.errors import CheckpointError
from trtllm_dflash.models.hf_config import parse_json

MAX_HEADER_BYTES = 100_000_000  # the format's own limit


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies: `offset` is absolute in the file `path`.

    `nbytes` equals shape times dtype. `is_divisor`: a scale that divides, where others multiply.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    nbytes: int
    is_divisor: bool = False

    def array(self) -> npt.NDArray[Any]:
        """Return a read-only view of the file's bytes, of `shape`; see `numpy_dtype`."""
        if 0 in self.shape:
            return np.empty(self.shape, self.numpy_dtype)  # nothing cannot be mapped
        return np.memmap(
            self.path, dtype=self.numpy_dtype, mode="r", offset=self.offset, shape=self.shape
        )

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """Return the numpy type of the elements.

        Raises: CheckpointError: for a dtype that weights cannot have here.
        """
        if self.dtype not in NUMPY_DTYPES:
            usable = ", ".join(NUMPY_DTYPES)
            raise CheckpointError(
                f"{self.path}: tensor {self.name} is {self.dtype}, and weights can be {usable}."
                " Use a BF16, F16 or F32 checkpoint, or one that is quantized to FP8 or NVFP4."
            )
        return NUMPY_DTYPES[self.dtype]


def read_tensor_infos(path: Path) -> dict[str, TensorInfo]:
    """Check a file's header against its size and return its tensors by name.

    Memory: the header. Raises: CheckpointError.
    """
    header, data_start, file_size = _read_header(path)
    refusal = _refusal_of_package(path)
    if refusal is not None:
        _fail(path, find_damage(header, data_start, file_size) or f"{refusal}.")
    header.pop("__metadata__", None)
    infos = {}
    for name, entry in header.items():
        oddity = find_oddity(name, entry)
        if oddity is not None:
            _fail(path, oddity)
        begin, end = entry["data_offsets"]
        offset = data_start + begin
        shape = tuple(entry["shape"])
        infos[name] = TensorInfo(name, entry["dtype"], shape, path, offset, end - begin)
    return infos


def _read_header(path: Path) -> tuple[dict[str, Any], int, int]:
    """Return the parsed header, the byte at which the data begins, and the file's size."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(
                f"{path}: this is not a regular file, and weights are read from nothing else."
            )
        check_file_type(path)
        with path.open("rb") as file:
            prefix = file.read(8)
            if len(prefix) < 8:
                needed = "too few for the 8-byte header length"
                _fail(path, f"the file has {len(prefix)} bytes, {needed}. It is truncated.")
            length = int.from_bytes(prefix, "little")
            limit = min(MAX_HEADER_BYTES, status.st_size - 8)
            if not 2 <= length <= limit:
                expected = f"expected 2 to {limit} in a file of {status.st_size} bytes"
                _fail(path, f"the header claims {length} bytes, {expected}.")
            text = file.read(length)
    except OSError as cause:
        raise CheckpointError(f"{path}: cannot be read ({cause.strerror}).") from cause
    return (
        parse_json(text, f"{path} (header)", error=CheckpointError),
        8 + length,
        status.st_size,
    )


def _refusal_of_package(path: Path) -> str | None:
    """Return why the safetensors package refuses a file, None if it does not."""
    try:
        with safe_open(path, "numpy"):
            return None
    except (SafetensorError, OSError) as error:
        return str(error)


def _fail(path: Path, problem: str) -> NoReturn:
    raise CheckpointError(
        f"{path}: damaged or hostile safetensors file: {problem} Get an intact copy of the file."
    )
