"""The initializers of a weight that is integers by block: codes, scales and zero points."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx_ir as ir

from trtllm_dflash.checkpoint.block_integers import BLOCK_LENGTH, BlockIntegers, num_blocks
from trtllm_dflash.graph.builder import GraphBuilder
from trtllm_dflash.graph.weight_source import WeightSource


class _Once:
    """Keeps what was made until each of its parts was read, so that it is made once."""

    def __init__(self, make: Callable[[], BlockIntegers]) -> None:
        self._make = make
        self._made: BlockIntegers | None = None
        self._parts: set[str] = set()
        self._unread: set[str] = set()

    def part(self, name: str) -> None:
        """Expect that the part will be read."""
        self._parts.add(name)

    def read(self, name: str) -> BlockIntegers:
        """Return what was made, for the sake of one part."""
        if self._made is None:
            self._made, self._unread = self._make(), set(self._parts)
        made = self._made
        self._unread.discard(name)
        if not self._unread:
            self._made = None
        return made


@dataclass(frozen=True)
class StoredIntegers:
    """The initializers of one weight [N, K], or of one of `experts` experts below each other.

    `make` rounds it, once for all three. The shapes are those that ONNX Runtime's operators take.
    Of all experts a part has one more axis, and a row's codes lie in one.
    """

    g: GraphBuilder
    weights: WeightSource
    name: str
    size: tuple[int, int]
    bits: int
    make: Callable[[], BlockIntegers]
    experts: int | None = None

    @property
    def num_rows(self) -> int:
        """Return N, of all experts together."""
        return self.size[0]

    @property
    def columns(self) -> int:
        """Return K."""
        return self.size[1]

    @property
    def _blocks(self) -> int:
        return num_blocks(self.columns)

    @cached_property
    def _rows(self) -> tuple[int, ...]:
        count = self.experts
        return (self.num_rows,) if count is None else (count, self.num_rows // count)

    @cached_property
    def _integers(self) -> _Once:
        return _Once(self.make)

    def packed(self) -> ir.Value:
        """Return the codes, uint8."""
        of_block = BLOCK_LENGTH * self.bits // 8
        of_row = (
            (self._blocks, of_block) if self.experts is None else (self._blocks * of_block,)
        )
        shape = (*self._rows, *of_row)
        return self._part("", ir.DataType.UINT8, shape, lambda made: made.packed)

    def scales(self) -> ir.Value:
        """Return a float32 for each block."""
        shape = (*self._rows, self._blocks)
        return self._part("_scale", ir.DataType.FLOAT, shape, lambda made: made.scales)

    def zero_points(self) -> ir.Value:
        """Return the zero points, uint8; of 4 bits two in a byte."""
        shape = (*self._rows, -(-self._blocks * self.bits // 8))
        return self._part(
            "_zero_point", ir.DataType.UINT8, shape, lambda made: made.packed_zero_points()
        )

    def _part(
        self,
        suffix: str,
        dtype: ir.DataType,
        shape: tuple[int, ...],
        part_of: Callable[[BlockIntegers], np.ndarray],
    ) -> ir.Value:
        self._integers.part(suffix)

        def make() -> np.ndarray:
            return part_of(self._integers.read(suffix)).reshape(shape)

        return self.weights.lazy(self.g, f"{self.name}{suffix}", dtype, shape, make)
