"""Several small arrays in one piece of memory, so that one copy moves all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtllm_dflash.hardware.cuda import ALIGNMENT


class PackedBuffer:
    """The layout of some arrays, each aligned as TensorRT wants its addresses."""

    def __init__(self, fields: Mapping[str, tuple[str, int]]) -> None:
        """Lay out `fields`, name -> (dtype, number of elements), in this order."""
        self._fields = fields
        self.offsets: dict[str, int] = {}  # in bytes
        self.nbytes = 0
        for name, (dtype, count) in fields.items():
            self.offsets[name] = self.nbytes
            self.nbytes += -(-np.dtype(dtype).itemsize * count // ALIGNMENT) * ALIGNMENT

    def addresses(self, base: int) -> dict[str, int]:
        """Return the arrays' addresses in memory that starts at `base`."""
        return {name: base + offset for name, offset in self.offsets.items()}

    def views(self, memory: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """Return the arrays, flat, in host memory [nbytes]."""
        found = {}
        for name, (dtype, count) in self._fields.items():
            begin = self.offsets[name]
            end = begin + np.dtype(dtype).itemsize * count
            found[name] = memory[begin:end].view(dtype)
        return found
