"""One use of an operator, as TensorRT enqueues it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Dims = Mapping[str, Sequence[int]]
Fields = Mapping[str, int | float]  # a plugin's, by name


@dataclass(frozen=True)
class Call:
    """One use of an operator: shapes and addresses of its tensors by name, its attributes, its
    workspace's address.
    """

    dims: Dims
    addresses: Mapping[str, int]
    attributes: Fields
    workspace: int
    processors: int  # the GPU's multiprocessors
    processor_shared_bytes: int  # shared memory of each
