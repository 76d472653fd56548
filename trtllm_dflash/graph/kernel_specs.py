"""What the CUDA kernel behind an operator is, and which kernel of it an engine has.

Without the library that graphs are made with: a process that only plans a build saves its 40 MiB.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class KernelSize:
    """A size that is a constant inside the kernel: its symbol in the shapes, and the values there
    is a kernel for.
    """

    name: str
    symbol: str
    values: tuple[int, ...]


@dataclass(frozen=True)
class KernelType:
    """A type that is a constant inside the kernel: the tensors of the type `symbol` are T as well,
    or they are `dtype`.

    In a plugin's fields and a kernel's key it is a number called `name`: 0 where they are T, one of
    `formats` where they are `dtype`. An attribute of that name says which; without one there is one
    format, and the inputs' type says whether they have it.
    """

    name: str
    symbol: str
    dtype: str
    formats: tuple[int, ...] = (1,)
    packed: int = 1  # elements of the declared shape that one `dtype` holds, along the last axis


@dataclass(frozen=True)
class Kernel:
    """The CUDA source plugins/kernels/`source`.cu of an operator's plugin, and what it takes."""

    source: str
    dtype: str  # what T is
    sizes: tuple[KernelSize, ...] = ()
    types: tuple[KernelType, ...] = ()

    def element_type(self, dtype: str, numbers: Mapping[str, int | float]) -> str:
        """Return what a tensor declared as `dtype` holds where the kernel's types are `numbers` by
        name.
        """
        chosen = {kind.symbol: kind.dtype for kind in self.types if numbers.get(kind.name)}
        symbols = {"T", *(kind.symbol for kind in self.types)}
        return chosen.get(dtype, self.dtype) if dtype in symbols else dtype

    def packed(self, dtype: str, numbers: Mapping[str, int | float]) -> int:
        """Return how many elements of its declared shape one element of a tensor declared as
        `dtype` holds.
        """
        chosen = {kind.symbol: kind.packed for kind in self.types if numbers.get(kind.name)}
        return chosen.get(dtype, 1)


@dataclass(frozen=True, order=True)
class KernelVariant:
    """A kernel source and the sizes that it is compiled for; a type that is not T is among them, as
    its format.
    """

    source: str
    sizes: tuple[tuple[str, int], ...] = ()

    def __str__(self) -> str:
        return ", ".join([self.source, *(f"{name} {value}" for name, value in self.sizes)])


ATTENTION = Kernel("attention", "bfloat16", (KernelSize("head_dim", "D", (64, 96, 128, 256)),))
