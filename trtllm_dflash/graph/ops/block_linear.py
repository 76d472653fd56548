"""DFlashBlockLinear: a linear whose weight is E4M3 codes with a scale for each block of 128 x 128.

`weight` is the checkpoint's bytes, where they are: an int32 is four codes of a row, little-endian.
An initializer of this shape points at them; `graph.ops.moe` says why int32. A weight is code ·
scale, in float32. The last blocks of both axes may be partial. Activations stay as they are.
"""

from __future__ import annotations

import onnx_ir as ir

from trtllm_dflash.checkpoint.formats import FP8_BLOCK_SIZE
from trtllm_dflash.graph.builder import GraphBuilder
from trtllm_dflash.graph.kernel_specs import BLOCK_LINEAR_KERNEL
from trtllm_dflash.graph.ops.spec import OpSpec, Tensor

_BYTE = 256
# Of a code: the highest bit is the sign, then come four bits of exponent and three of mantissa.
_SIGN = 128
_MANTISSA = 8


def _body(
    g: GraphBuilder,
    x: ir.Value,
    weight: ir.Value,
    scales: ir.Value,
    bias: ir.Value | None = None,
) -> tuple[ir.Value, ...]:
    """Multiply by all weights at once, as float32 numbers [O, I]."""
    unscaled = _unpacked(g, weight)
    for axis in (0, 1):
        block = g.Div(g.arange(g.size(unscaled, axis)), FP8_BLOCK_SIZE)
        scales = g.Gather(scales, block, axis=axis)
    dequantized = g.Mul(unscaled, scales)
    out = g.MatMul(g.cast(x, ir.DataType.FLOAT), g.Transpose(dequantized, perm=[1, 0]))
    if bias is not None:
        out = g.Add(out, g.cast(bias, ir.DataType.FLOAT))
    return (g.CastLike(out, x),)


def _unpacked(g: GraphBuilder, weight: ir.Value) -> ir.Value:
    """Return what the codes of a weight [O, I/4] stand for, float32 [O, I]: ±(8 + m) · 2^(e - 10),
    and ±m · 2^-9 where e is 0.
    """
    word = g.Unsqueeze(g.Mod(g.cast(weight, ir.DataType.INT64), 1 << 32), [2])
    code = g.Mod(g.Div(word, [_BYTE**i for i in range(4)]), _BYTE)
    exponent = g.Div(g.Mod(code, _SIGN), _MANTISSA)
    mantissa = g.Add(g.Mod(code, _MANTISSA), g.Where(g.Greater(exponent, 0), _MANTISSA, 0))
    power = g.cast(g.Sub(g.Max(exponent, 1), 10), ir.DataType.FLOAT)
    size = g.Mul(g.cast(mantissa, ir.DataType.FLOAT), g.Pow(2.0, power))
    signed = g.Where(g.Less(code, _SIGN), size, g.Neg(size))
    return g.Reshape(signed, g.Concat(g.size(weight, 0), [-1], axis=0))


BLOCK_LINEAR = OpSpec(
    name="DFlashBlockLinear",
    meaning="x · weightᵀ + bias; a weight is an E4M3 code times the scale of its 128 x 128 block.",
    inputs=(
        Tensor("x", "T", "[N, I]", "rows"),
        Tensor("weight", "int32", "[O, W]", "E4M3, four in each: I = 4W, a multiple of 16"),
        Tensor("scales", "float32", "[Ob, Ib]", "of blocks: O/128 and I/128, rounded up"),
        Tensor("bias", "T", "[O]", "added", optional=True),
    ),
    outputs=(Tensor("out", "T", "[N, O]", "the product"),),
    attributes=(),
    reference_body=_body,
    kernel=BLOCK_LINEAR_KERNEL,
)
