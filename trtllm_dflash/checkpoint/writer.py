"""Writing .safetensors files, in a given order and one buffer at a time.

The safetensors package writes too, but it wants all tensors in memory, orders them itself and does
not say where each lies. A file written here may be larger than memory, and its offsets are known
before its bytes are.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trtllm_dflash.checkpoint.dtypes import DTYPE_BITS

Buffer = bytes | memoryview
FORMAT = {"format": "pt"}  # the metadata without which transformers refuses a file


@dataclass(frozen=True)
class FileLayout:
    """A file's header, and where each tensor's bytes begin in the file; `nbytes` of all of it."""

    header: bytes
    offsets: Mapping[str, int]
    nbytes: int

    @classmethod
    def of(
        cls,
        tensors: Mapping[str, tuple[str, Sequence[int]]],
        *,
        alignment: int = 8,
        metadata: Mapping[str, str] | None = None,
    ) -> FileLayout:
        """Lay out tensors, given by dtype and shape, in this order without gaps.

        The first one begins at a multiple of `alignment`.
        """
        entries: dict[str, Any] = {}
        if metadata:
            entries["__metadata__"] = dict(metadata)
        begins: dict[str, int] = {}
        end = 0
        for name, (dtype, shape) in tensors.items():
            begin = end
            end += prod(shape) * DTYPE_BITS[dtype] // 8
            begins[name] = begin
            entries[name] = {
                "dtype": dtype,
                "shape": list(shape),
                "data_offsets": [begin, end],
            }
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-(8 + len(text)) % alignment)
        header = len(text).to_bytes(8, "little") + text
        offsets = {name: len(header) + begin for name, begin in begins.items()}
        return cls(header, offsets, len(header) + end)


def write_file(path: Path, layout: FileLayout, buffers: Iterable[Buffer]) -> None:
    """Write a file from the bytes of its tensors in the layout's order, in buffers of any size.

    Raises: OSError: if they are not as many as the layout has.
    """
    with path.open("wb") as file:
        file.write(layout.header)
        for buffer in buffers:
            file.write(buffer)
    written = path.stat().st_size  # what the system has, once the file is closed
    if written != layout.nbytes:
        raise OSError(f"{path}: {written} bytes were written, expected {layout.nbytes}")


def write_arrays(path: Path, tensors: Mapping[str, tuple[str, npt.NDArray[Any]]]) -> None:
    """Write arrays that are in memory, each with its dtype, whose bytes they hold."""
    described = {name: (dtype, array.shape) for name, (dtype, array) in tensors.items()}
    layout = FileLayout.of(described, metadata=FORMAT)
    arrays = (np.ascontiguousarray(array) for _, array in tensors.values())
    write_file(path, layout, (array.reshape(-1).view(np.uint8).data for array in arrays))
