"""The weights of a layer's experts, as the operator DFlashMoE takes them: gate_up [E, 2I, H] and
down [E, H, I].

A checkpoint has them as one tensor of all experts (gpt-oss), or as linears of each (Qwen3-MoE). The
latter become one tensor too, while it is written. What is not in the checkpoint's file as it is, is
made when it is read, and not kept.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from trtllm_dflash.checkpoint.dequantize import row_scales
from trtllm_dflash.checkpoint.formats import NVFP4_GROUP_SIZE, WeightFormat
from trtllm_dflash.checkpoint.mxfp4 import (
    BLOCKS,
    SCALES,
    dequantized_experts,
    nvfp4_block_scales,
    nvfp4_scale,
)
from trtllm_dflash.errors import GraphError
from trtllm_dflash.graph.builder import GraphBuilder
from trtllm_dflash.graph.kernel_specs import FP8_FORMAT, NVFP4_FORMAT
from trtllm_dflash.graph.weight_source import FP8_PER_INT32, WeightSource

Shape = tuple[int, int, int]
_FP4_PER_INT32 = 8
_SCALES_PER_INT32 = 4  # how many of them an int32 has


@dataclass(frozen=True)
class ExpertWeight(ABC):
    """One of a layer's two weights, of the shape [experts, out, in]; its initializers begin with
    `name`.
    """

    weights: WeightSource
    name: str
    shape: Shape

    @property
    @abstractmethod
    def weight_format(self) -> int:
        """DFlashMoE's: 0 unquantized, 1 MXFP4, 2 NVFP4, 3 FP8."""

    @property
    def block_rows(self) -> int:
        """Return DFlashMoE's: how many rows of FP8 share scales; 0 in other formats."""
        return 0

    @abstractmethod
    def no_fp4_reason(self) -> str | None:
        """Return why DequantizeLinear cannot give exactly these values; None if it can."""

    @abstractmethod
    def unpackable_reason(self) -> str | None:
        """Return why our plugin cannot give exactly these values; None if it can."""

    @abstractmethod
    def dequantized(self, g: GraphBuilder, dtype: ir.DataType) -> ir.Value:
        """Return the dequantized weight as `dtype`."""

    @abstractmethod
    def alternating(self) -> Iterator[npt.NDArray[np.float32]]:
        """Yield each expert's unquantized matrix [out, in]; rows of gate and up alternate."""

    @abstractmethod
    def fp4(self, g: GraphBuilder) -> tuple[ir.Value, ir.Value]:
        """FP4 codes, and the float32 scales of their blocks of 16."""

    @abstractmethod
    def packed(self, g: GraphBuilder) -> tuple[ir.Value, ...]:
        """Codes and scales as the plugin takes them: the table in `graph.ops.moe`."""


@dataclass(frozen=True)
class FusedExperts(ExpertWeight):
    """A tensor of all experts; unquantized it is [experts, in, out]."""

    @property
    def weight_format(self) -> int:
        return int(self.name in self.weights.formats)

    def no_fp4_reason(self) -> str | None:
        return (
            None
            if self._scale is not None
            else f"{self.name}: its exponents are too far apart for NVFP4's scales"
        )

    def unpackable_reason(self) -> str | None:
        return None

    def dequantized(self, g: GraphBuilder, dtype: ir.DataType) -> ir.Value:
        tensors = self.weights.tensors

        def make() -> np.ndarray:
            if self.weight_format:
                return dequantized_experts(tensors, self.name, dtype.numpy())
            turned: np.ndarray = (
                tensors[self.name].array().transpose(0, 2, 1).astype(dtype.numpy())
            )
            return turned

        return self.weights.lazy(g, self.name, dtype, self.shape, make)

    def alternating(self) -> Iterator[npt.NDArray[np.float32]]:
        for matrix in self.weights.tensors[self.name].array():
            yield matrix.T

    def fp4(self, g: GraphBuilder) -> tuple[ir.Value, ir.Value]:
        scale = self._scale
        weights = self.weights
        if scale is None:
            raise GraphError(str(self.no_fp4_reason()))
        make = lambda: nvfp4_block_scales(weights.tensors, self.name, scale)  # noqa: E731
        packed = weights.mapped(g, f"{self.name}{BLOCKS}", ir.DataType.FLOAT4E2M1, self.shape)
        blocks = weights.lazy(
            g, f"{self.name}{SCALES}", ir.DataType.FLOAT8E4M3FN, _blocks_of(self.shape), make
        )
        return packed, g.DequantizeLinear(blocks, scale)

    def packed(self, g: GraphBuilder) -> tuple[ir.Value, ...]:
        count, rows, num_blocks = self.weights.tensors[f"{self.name}{SCALES}"].shape
        sizes = {
            BLOCKS: _int32(self.shape),
            SCALES: (count, rows * num_blocks // _SCALES_PER_INT32),
        }
        return tuple(
            self.weights.mapped(g, f"{self.name}{ending}", ir.DataType.INT32, size)
            for ending, size in sizes.items()
        )

    @cached_property
    def _scale(self) -> float | None:
        return nvfp4_scale(self.weights.tensors, self.name)


@dataclass(frozen=True)
class PerExpertLinears(ExpertWeight):
    """Linears [out, in] of each expert, those of one expert below each other: first all gates, then
    all ups.
    """

    linears: tuple[tuple[str, ...], ...]

    @cached_property
    def _format(self) -> WeightFormat | None:
        """Return the format of all linears, None if some have another or none."""
        formats = (self.weights.formats.get(name) for group in self.linears for name in group)
        found = {fmt and (fmt.group_size, fmt.block_size): fmt for fmt in formats}
        return next(iter(found.values())) if len(found) == 1 else None

    @property
    def weight_format(self) -> int:
        if self._format is None:
            return 0
        return FP8_FORMAT if self._format.group_size is None else NVFP4_FORMAT

    @property
    def block_rows(self) -> int:
        if self.weight_format != FP8_FORMAT or self._format is None:
            return 0
        return self._format.block_size or 1

    def no_fp4_reason(self) -> str | None:
        scales = self._scales_2
        expert = next((j for j, group in enumerate(scales) if len(set(group)) > 1), None)
        if expert is None:
            return None
        return f"{self.name}: gate and up of expert {expert} have different weight_scale_2"

    def unpackable_reason(self) -> str | None:
        return None if self.weight_format == FP8_FORMAT else self.no_fp4_reason()

    def dequantized(self, g: GraphBuilder, dtype: ir.DataType) -> ir.Value:
        def make() -> np.ndarray:
            return _stack(self.linears, self.shape, dtype.numpy(), self.weights.array)

        return self.weights.lazy(g, self.name, dtype, self.shape, make)

    def alternating(self) -> Iterator[npt.NDArray[np.float32]]:
        for group in self.linears:
            matrices = [self.weights.array(name) for name in group]
            yield np.stack(matrices, axis=1).reshape(self.shape[1:])

    def fp4(self, g: GraphBuilder) -> tuple[ir.Value, ir.Value]:
        packed = self._stacked(g, "weight", ir.DataType.FLOAT4E2M1, self.shape)
        blocks = self._stacked(
            g, "weight_scale", ir.DataType.FLOAT8E4M3FN, _blocks_of(self.shape)
        )
        return packed, g.DequantizeLinear(blocks, self._scale_2(g), axis=0)

    def packed(self, g: GraphBuilder) -> tuple[ir.Value, ...]:
        if self.weight_format == FP8_FORMAT:
            return self._packed_fp8(g)
        count, rows, columns = self.shape
        num_scales = rows * columns // NVFP4_GROUP_SIZE
        packed = self._stacked(g, "weight", ir.DataType.INT32, _int32(self.shape))
        blocks = self._stacked(
            g, "weight_scale", ir.DataType.INT32, (count, num_scales // _SCALES_PER_INT32)
        )
        return packed, blocks, self._scale_2(g)

    def _packed_fp8(self, g: GraphBuilder) -> tuple[ir.Value, ...]:
        count, rows, columns = self.shape
        shape = (count, rows, columns // FP8_PER_INT32)
        packed = self._stacked(g, "weight", ir.DataType.INT32, shape)
        num_scales = len(self._fp8_scales(self.linears[0]))

        def make() -> np.ndarray:
            stacked = np.empty((count, num_scales), np.float32)
            for expert, group in zip(stacked, self.linears, strict=True):
                expert[:] = self._fp8_scales(group)
            return stacked.view(np.int32)

        name = f"{self.name}.weight_scale"
        scales = self.weights.lazy(g, name, ir.DataType.INT32, (count, num_scales), make)
        return packed, scales

    def _fp8_scales(self, group: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return one expert's scales: of blocks, row after row, or of each row."""
        tensors = self.weights.tensors
        found = []
        for name in group:
            info = tensors[f"{name}.weight_scale"]
            num_rows = tensors[f"{name}.weight"].shape[0]
            of_blocks = info.array().reshape(-1).astype(np.float32)
            found.append(row_scales(info, num_rows) if self.block_rows == 1 else of_blocks)
        return np.concatenate(found)

    def _stacked(
        self, g: GraphBuilder, ending: str, dtype: ir.DataType, shape: Sequence[int]
    ) -> ir.Value:
        """Return the stored bytes of all experts, taken for `dtype` and `shape`.

        They stay in place where a file has the experts one behind the other.
        """
        tensors = self.weights.tensors
        (count, rows, _) = self.shape
        called = f"{self.name}.{ending}"
        names = [f"{name}.{ending}" for group in self.linears for name in group]
        in_place = self.weights.span(g, called, names, dtype, shape)
        if in_place is not None:
            return in_place

        def make() -> np.ndarray:
            width = tensors[f"{self.linears[0][0]}.{ending}"].shape[1]
            take = lambda linear: tensors[f"{linear}.{ending}"].array().view(np.uint8)  # noqa: E731
            stacked = _stack(self.linears, (count, rows, width), np.uint8, take)
            return (
                stacked
                if dtype.bitwidth < 8
                else stacked.reshape(-1).view(dtype.numpy()).reshape(shape)
            )

        return self.weights.lazy(g, called, dtype, shape, make)

    def _scale_2(self, g: GraphBuilder) -> ir.Value:
        scales = np.array([group[0] for group in self._scales_2], np.float32)
        return g.initializer(f"target.{self.name}.weight_scale_2", lambda: ir.Tensor(scales))

    @cached_property
    def _scales_2(self) -> list[list[float]]:
        scale = self.weights.scalar
        return [[scale(f"{name}.weight_scale_2") for name in group] for group in self.linears]


def _blocks_of(shape: Shape) -> Shape:
    return (*shape[:2], shape[2] // NVFP4_GROUP_SIZE)


def _int32(shape: Shape) -> Shape:
    return (*shape[:2], shape[2] // _FP4_PER_INT32)


def _stack(
    linears: Sequence[Sequence[str]],
    shape: Shape,
    dtype: npt.DTypeLike,
    take: Callable[[str], np.ndarray],
) -> np.ndarray:
    """[experts, out, in] of matrices [out, in], those of an expert below each other. Memory: the
    result.
    """
    stacked = np.empty(shape, dtype)
    for expert, group in zip(stacked, linears, strict=True):
        for rows, linear in zip(np.split(expert, len(group)), group, strict=True):
            rows[:] = take(linear)
    return stacked
