"""The CUDA kernels behind operators, and the variants of them that an engine has.

This module does not import onnx_ir: a process that only plans a build saves its 40 MiB.
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

    A plugin's fields and a kernel's variant have an integer `name`: 0 for T, one of `formats` for
    `dtype`. It comes from an attribute of that name. Without one there is one format, and the
    inputs' type tells whether they have it. `packed` has for each format how many elements of the
    declared shape one `dtype` holds, along the last axis.
    """

    name: str
    symbol: str
    dtype: str
    formats: tuple[int, ...] = (1,)
    packed: tuple[int, ...] = (1,)


@dataclass(frozen=True)
class Kernel:
    """The CUDA source plugins/kernels/`source`.cu of an operator's plugin, and what it takes."""

    source: str
    dtype: str  # what T is
    sizes: tuple[KernelSize, ...] = ()
    types: tuple[KernelType, ...] = ()

    def element_type(self, dtype: str, fields: Mapping[str, int | float]) -> str:
        """Return what a tensor declared as `dtype` holds where the kernel's types are `fields` by
        name.
        """
        chosen = {
            kernel_type.symbol: kernel_type.dtype
            for kernel_type in self.types
            if fields.get(kernel_type.name)
        }
        symbols = {"T", *(kernel_type.symbol for kernel_type in self.types)}
        return chosen.get(dtype, self.dtype) if dtype in symbols else dtype

    def packed(self, dtype: str, fields: Mapping[str, int | float]) -> int:
        """Return how many elements of its declared shape one element of a tensor declared as
        `dtype` holds.
        """
        for kernel_type in self.types:
            held = dict(zip(kernel_type.formats, kernel_type.packed, strict=True))
            if kernel_type.symbol == dtype:
                return held.get(int(fields.get(kernel_type.name, 0)), 1)
        return 1


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
GATED_DELTA_KERNEL = Kernel(
    "gated_delta",
    "bfloat16",
    (
        KernelSize("key_dim", "Dk", (128,)),
        KernelSize("value_dim", "Dv", (128,)),
        KernelSize("conv_kernel", "Kc", (4,)),
    ),
)
BLOCK_LINEAR_KERNEL = Kernel("block_linear", "bfloat16")
NVFP4_FORMAT, FP8_FORMAT = 2, 3  # DFlashMoE's weight_format; 0 is unquantized, 1 MXFP4
# Rows that the body of DFlashGatedDelta takes at once; plans of its memory need it too.
DELTA_CHUNK_ROWS = 32
