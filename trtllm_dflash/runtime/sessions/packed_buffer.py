"""Several small arrays in one piece of memory, so that one copy moves them all between host and
device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtllm_dflash.hardware.cuda import ALIGNMENT


class PackedBuffer:
    """Where each array lies: `offsets[name]` bytes from the start, each aligned as TensorRT wants
    its addresses.
    """

    def __init__(self, fields: Mapping[str, tuple[str, int]]) -> None:
        """`fields`: name -> (type, number of elements), in the order in which they lie."""
        self._fields = fields
        self.offsets: dict[str, int] = {}
        self.nbytes = 0
        for name, (dtype, count) in fields.items():
            self.offsets[name] = self.nbytes
            self.nbytes += -(-np.dtype(dtype).itemsize * count // ALIGNMENT) * ALIGNMENT

    def addresses(self, base: int) -> dict[str, int]:
        """The arrays' addresses in memory that starts at `base`."""
        return {name: base + offset for name, offset in self.offsets.items()}

    def views(self, memory: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """The arrays, flat, in host memory [nbytes]."""
        return {
            name: memory[self.offsets[name] :][: np.dtype(dtype).itemsize * count].view(dtype)
            for name, (dtype, count) in self._fields.items()
        }
