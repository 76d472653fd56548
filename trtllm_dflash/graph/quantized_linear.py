"""A linear whose weight may be quantized: what it multiplies, in a compiler's own types or emulated
in float32.

TensorRT gets the pattern that it fuses into one low-precision product. Q is QuantizeLinear, DQ
DequantizeLinear:

    FP8
        x ─ Q ─ DQ ──────┐
        weight ───── DQ ─┴─ Gemm

    NVFP4
        x ─ TRT_FP4DynamicQuantize ─┬─ E2M1 ───────────┬─ DQ ─ cast ─┐
            (input_scale)           └─ E4M3 scales ─ DQ ─┘           ├─ Gemm
        weight E2M1, its E4M3 scales ─ DQ ─ DQ ─ cast ───────────────┘

W8A16_FP8 is the lower half of FP8, with one scale or one for each row. TensorRT-RTX 1.7 compiles
it to one kernel that reads a byte a weight. For scales of blocks of 128 x 128 it has no such
kernel. Our plugin DFlashBlockLinear reads them. Without plugins the numbers are rounded to the
engine's type.

Only weights are 4-bit in W4A16_NVFP4: x goes to Gemm as it is. TensorRT-RTX 1.7 fuses nothing
there. Its engine writes the BF16 weight into memory before every product, so that format makes an
engine small and not fast.

ONNX Runtime's CPU has neither FP4 nor BF16 kernels. Its optimizer rewrites Q and DQ into operators
that it lacks, or drops an activation before them. A float32 graph therefore holds dequantized
weights, converted when the engine is written. Activations are rounded by functions of plain
arithmetic, which no optimizer recognises. Both graphs compute sums of the same products, but for
the BF16 in which a GPU keeps what is not quantized.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from trtllm_dflash.checkpoint.formats import FP8_UNIT, NVFP4_GROUP_SIZE
from trtllm_dflash.graph.builder import GraphBuilder, function_from_body
from trtllm_dflash.graph.ops import BLOCK_LINEAR
from trtllm_dflash.graph.weight_source import FP8_PER_INT32, WeightSource

TRT_DOMAIN = "trt"  # operators of TensorRT's parser
EMULATION_DOMAIN = "trtllm_dflash.emulation"
FP8_MAX = 448.0
FP4_MAX = 6.0


@dataclass(frozen=True)
class QuantizedLinears:
    """The operands of one model's quantized linears."""

    g: GraphBuilder
    weights: WeightSource
    dtype: ir.DataType
    plugins: bool = False  # whether the graph is one of plugins
    _rounded: dict[tuple[ir.Value, str, float], ir.Value] = field(default_factory=dict)

    def operands(
        self, x: ir.Value, module: str, rows: np.ndarray | None = None, alias: str = ""
    ) -> tuple[ir.Value, ir.Value]:
        """x [N, in] and the weight [out, in] of a quantized linear, as they enter its product."""
        weight_format = self.weights.formats[module]
        if weight_format.has_input_scale:
            scale = self.weights.scalar(f"{module}.input_scale")
            # q, k and v share an input, and mostly its scale: it is rounded once.
            key = (x, weight_format.name, scale)
            if key not in self._rounded:
                self._rounded[key] = self._activation(x, weight_format.group_size, scale)
            x = self._rounded[key]
        if self._emulates or weight_format.block_size is not None:
            return x, self.weights.dequantized(self.g, module, rows, alias)
        return x, self._weight(module, weight_format.group_size, rows, alias)

    def has_plugin(self, module: str) -> bool:
        """Tell whether the product with this linear is a plugin's."""
        weight_format = self.weights.formats.get(module)
        if weight_format is None or weight_format.block_size is None:
            return False
        if self._emulates or not self.plugins:
            return False
        return self.weights.tensors[f"{module}.weight"].shape[1] % FP8_UNIT == 0

    def by_plugin(self, x: ir.Value, module: str, *bias: ir.Value) -> ir.Value:
        """Return x [N, in] · weightᵀ (+ bias) of a linear in FP8 blocks."""
        g = self.g
        rows, columns = self.weights.tensors[f"{module}.weight"].shape
        shape = (rows, columns // FP8_PER_INT32)
        weight = self.weights.mapped(g, f"{module}.weight", ir.DataType.INT32, shape)
        return BLOCK_LINEAR(g, x, weight, self.weights.block_scales(g, module), *bias)[0]

    @property
    def _emulates(self) -> bool:
        return self.dtype == ir.DataType.FLOAT

    def _activation(self, x: ir.Value, group_size: int | None, scale: float) -> ir.Value:
        g = self.g
        if self._emulates:
            name = _ROUND_FP8 if group_size is None else _ROUND_NVFP4
            return g.emit(name, [x, scale], domain=EMULATION_DOMAIN)[0]
        if group_size is None:
            packed = g.QuantizeLinear(x, scale, output_dtype=int(ir.DataType.FLOAT8E4M3FN))
            return g.DequantizeLinear(packed, scale, output_dtype=int(self.dtype))
        packed, block_scales = g.emit(
            "TRT_FP4DynamicQuantize",
            [x, scale],
            {"axis": -1, "block_size": group_size, "scale_type": int(ir.DataType.FLOAT8E4M3FN)},
            domain=TRT_DOMAIN,
            num_outputs=2,
        )
        return self._from_blocks(packed, block_scales, scale, group_size)

    def _weight(
        self, module: str, group_size: int | None, rows: np.ndarray | None, alias: str
    ) -> ir.Value:
        g = self.g
        packed = self.weights.packed(g, f"{module}.weight", rows, alias)
        if group_size is None:
            scale = self.weights.row_scales(g, module, rows, alias)
            axis = {"axis": 0} if isinstance(scale, ir.Value) else {}
            return g.DequantizeLinear(packed, scale, output_dtype=int(self.dtype), **axis)
        block_scales = self.weights.packed(g, f"{module}.weight_scale", rows, f"{alias}_scale")
        return self._from_blocks(
            packed, block_scales, self.weights.scalar(f"{module}.weight_scale_2"), group_size
        )

    def _from_blocks(
        self, packed: ir.Value, block_scales: ir.Value, scale: float, group_size: int
    ) -> ir.Value:
        """Return packed E2M1 [N, in] · (E4M3 block scales [N, in/16] · scale), as `dtype`.

        In float32 until the cast: TensorRT-RTX has no DequantizeLinear of blocks from float32
        scales to BF16, and scales that are rounded to BF16 would be other numbers.
        """
        g = self.g
        values = g.DequantizeLinear(
            packed, g.DequantizeLinear(block_scales, scale), axis=-1, block_size=group_size
        )
        return g.cast(values, self.dtype)


_ROUND_FP8 = "RoundToFP8"
_ROUND_NVFP4 = "RoundToNVFP4"


def _round_fp8(g: GraphBuilder, x: ir.Value, scale: ir.Value) -> tuple[ir.Value, ...]:
    """E4M3(x / scale) · scale; beyond ±448 it saturates."""
    return (g.Mul(_to_e4m3(g, g.Div(x, scale)), scale),)


def _round_nvfp4(g: GraphBuilder, x: ir.Value, scale: ir.Value) -> tuple[ir.Value, ...]:
    """x [N, in] rounded to E2M1 in blocks of 16 along `in`, as TensorRT and ModelOpt quantize
    activations.

    A block's scale is that of its largest magnitude, E4M3(max|x| / (6 · scale)) · scale. A block
    too small for any such scale becomes zero. There may be no rows, so blocks stand one below the
    other.
    """
    blocks = g.Reshape(x, [-1, NVFP4_GROUP_SIZE])
    largest = g.ReduceMax(g.Abs(blocks), [-1], keepdims=1)
    block_scale = g.Mul(_to_e4m3(g, g.Div(largest, g.Mul(scale, FP4_MAX))), scale)
    is_zero = g.Equal(block_scale, 0.0)
    values = g.Div(blocks, g.Where(is_zero, 1.0, block_scale))
    return (g.Reshape(g.Mul(_to_e2m1(g, values), block_scale), g.Shape(x)),)


def _to_e4m3(g: GraphBuilder, x: ir.Value) -> ir.Value:
    """x rounded to the nearest E4M3 number, ties to even, beyond ±448 to that."""
    return g.cast(g.Cast(x, to=int(ir.DataType.FLOAT8E4M3FN), saturate=1), ir.DataType.FLOAT)


def _to_e2m1(g: GraphBuilder, x: ir.Value) -> ir.Value:
    """x rounded to the nearest of ±{0, 0.5, 1, 1.5, 2, 3, 4, 6}, ties to even.

    They are multiples of 0.5 below 2, of 1 below 4, of 2 above; ONNX's Round has ties to even.
    """
    x = g.Clip(x, -FP4_MAX, FP4_MAX)
    size = g.Abs(x)
    step = g.Where(g.Less(size, 2.0), 0.5, g.Where(g.Less(size, 4.0), 1.0, 2.0))
    return g.Mul(g.Round(g.Div(x, step)), step)


_BODIES = {_ROUND_FP8: _round_fp8, _ROUND_NVFP4: _round_nvfp4}


def emulation_functions(nodes: Iterable[ir.Node]) -> list[ir.Function]:
    """Return the functions that give the emulating ones among these nodes their meaning."""
    used = {node.op_type for node in nodes if node.domain == EMULATION_DOMAIN}
    return [
        function_from_body(name, ["x", "scale"], ["rounded"], [], body, domain=EMULATION_DOMAIN)
        for name, body in _BODIES.items()
        if name in used
    ]
