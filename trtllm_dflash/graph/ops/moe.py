"""DFlashMoE: a mixture of experts, each a gated MLP, of which every token uses top_k.

`weight_format` says how gate_up and down are stored; what an exporter gives in each:

| input | 0: T | 1: MXFP4 | 2: NVFP4 | 3: FP8 |
|---|---|---|---|---|
| gate_up | T [E, J, H] | int32 [E, J, H/8] | int32 [E, J, H/8] | int32 [E, J, H/4] |
| down | T [E, H, I] | int32 [E, H, I/8] | int32 [E, H, I/8] | int32 [E, H, I/4] |
| gate_up_scale | left out | int32 [E, J·H/128] | int32 [E, J·H/64] | int32 [E, 2·Ib·Hb] |
| down_scale | left out | int32 [E, H·I/128] | int32 [E, H·I/64] | int32 [E, Hb·Ib] |
| gate_up_scale_2, down_scale_2 | left out | left out | float32 [E] | left out |

An int32 is four bytes of the checkpoint, little-endian, where they are: an initializer of this
shape points at them. A byte of codes is two E2M1 numbers along the input dimension, the even one in
the low nibble. Scales are bytes too, one for each block of a row, row after row: E8M0 of 32 (2^(s -
127), 255 is NaN), or E4M3 of 16, not swizzled. A weight is code · scale (· scale_2 of its expert).
H and I are multiples of 32 in both formats and of 8 in T.

A byte of FP8 codes is one E4M3 number, and a scale is a float32, whose bits an int32 has. With
`block_rows` 128 it is that of a block of 128 x 128: Ib and Hb are I/128 and H/128, rounded up, and
up begins with blocks of its own. With `block_rows` 1 a row has one scale: there are J and H of
them. H and I are multiples of 16. Gates come first, then ups.

Why int32: TensorRT-RTX 1.7.1 keeps INT32 constants as they are, at any offset in a file. UINT8
becomes four bytes an element, and INT8 gets a scale of its own. FP4 and FP8 are refused for GPUs
without them, and E8M0 for all.
"""

from __future__ import annotations

import onnx_ir as ir

from trtllm_dflash.errors import GraphError
from trtllm_dflash.graph.builder import GraphBuilder
from trtllm_dflash.graph.kernel_specs import Kernel, KernelType
from trtllm_dflash.graph.ops.spec import Attribute, OpSpec, Tensor

TOP_K = Attribute("top_k", 1, "experts of a token")
NORMALIZE = Attribute(
    "normalize", 1, "1: softmax over the chosen experts' logits; 0: over all of them"
)
INTERLEAVED = Attribute(
    "interleaved",
    0,
    "1: rows 2i and 2i+1 of gate_up are gate i and up i; 0: all gates, then ups",
)
LIMIT = Attribute("limit", 0.0, "gate is cut above it, up beyond ±it; 0: neither")
ALPHA = Attribute("alpha", 1.0, "the gate's slope: gate · sigmoid(alpha · gate)")
SHIFT = Attribute("shift", 0.0, "added to up")
WEIGHT_FORMAT = Attribute(
    "weight_format", 0, "of gate_up and down; 0: T, 1: MXFP4, 2: NVFP4, 3: FP8"
)
BLOCK_ROWS = Attribute("block_rows", 0, "of FP8: rows that share scales, 128 or 1")


def _body(
    g: GraphBuilder,
    x: ir.Value,
    router_logits: ir.Value,
    gate_up: ir.Value,
    gate_up_bias: ir.Value,
    down: ir.Value,
    down_bias: ir.Value,
    *scales: ir.Value | None,
) -> tuple[ir.Value, ...]:
    """Apply every expert to every token, with a weight of 0 where it was not chosen.

    Tokens are columns, [E, rows, N].
    """
    if any(scale is not None for scale in scales):
        raise GraphError(
            "DFlashMoE: a body multiplies numbers; codes and their scales are for its plugin"
        )
    columns = g.Transpose(x, perm=[1, 0])
    inner = _gated(g, g.Add(g.MatMul(gate_up, columns), g.Unsqueeze(gate_up_bias, [2])))
    out = g.Add(g.MatMul(down, inner), g.Unsqueeze(down_bias, [2]))
    weights = g.Unsqueeze(
        g.Transpose(_weights(g, router_logits), perm=[1, 0]), [1]
    )  # [E, 1, N]
    total = g.ReduceSum(g.Mul(g.cast(out, ir.DataType.FLOAT), weights), [0], keepdims=0)
    return (g.CastLike(g.Transpose(total, perm=[1, 0]), x),)


def _weights(g: GraphBuilder, router_logits: ir.Value) -> ir.Value:
    """Return each expert's share in each token, [N, E]: 0 but for the top_k highest logits."""
    count = g.Unsqueeze(g.attribute(TOP_K.name, TOP_K.onnx_type), [0])
    chosen, index = g.emit("TopK", [router_logits, count], {"axis": -1}, num_outputs=2)
    of_all = g.GatherElements(g.Softmax(router_logits, axis=-1), index, axis=-1)
    share = g.Where(
        g.Equal(g.attribute(NORMALIZE.name, NORMALIZE.onnx_type), 1),
        g.Softmax(chosen, axis=-1),
        of_all,
    )
    return g.ScatterElements(g.Expand(0.0, g.Shape(router_logits)), index, share, axis=-1)


def _gated(g: GraphBuilder, both: ir.Value) -> ir.Value:
    """(up + shift) · gate · sigmoid(alpha · gate) of gate and up [E, 2I, N], as [E, I, N]."""
    interleaved = g.attribute(INTERLEAVED.name, INTERLEAVED.onnx_type)
    half = g.Div(g.size(both, 1), 2)
    gate_row = g.Mul(g.arange(half), g.Add(interleaved, 1))
    up_row = g.Add(gate_row, g.Where(g.Equal(interleaved, 1), 1, half))
    gate = g.Gather(both, gate_row, axis=1)
    up = g.Gather(both, up_row, axis=1)
    limit = g.attribute(LIMIT.name, LIMIT.onnx_type)
    limit = g.CastLike(g.Where(g.Equal(limit, 0.0), float("inf"), limit), both)
    gate, up = g.Min(gate, limit), g.Max(g.Min(up, limit), g.Neg(limit))
    slope, shift = (g.CastLike(g.attribute(a.name, a.onnx_type), both) for a in (ALPHA, SHIFT))
    return g.Mul(g.Add(up, shift), g.Mul(gate, g.Sigmoid(g.Mul(gate, slope))))


MOE = OpSpec(
    name="DFlashMoE",
    meaning=(
        "The weighted sum of each token's top_k experts: down · ((up + shift) · gate ·"
        " sigmoid(alpha · gate))."
    ),
    inputs=(
        Tensor("x", "T", "[N, H]", "tokens, normed"),
        Tensor("router_logits", "float32", "[N, E]", "what each expert is worth to each token"),
        Tensor(
            "gate_up",
            "W",
            "[E, J, H]",
            "both projections, J = 2I rows; `interleaved` says which is which",
        ),
        Tensor("gate_up_bias", "T", "[E, J]", "0 where a model has none"),
        Tensor("down", "W", "[E, H, I]", "the projection back"),
        Tensor("down_bias", "T", "[E, H]", "0 where a model has none"),
        Tensor(
            "gate_up_scale",
            "int32",
            "[E, Wu]",
            "of MXFP4 and NVFP4: four block scales in each; of FP8 one",
            optional=True,
        ),
        Tensor("down_scale", "int32", "[E, Wd]", "likewise", optional=True),
        Tensor(
            "gate_up_scale_2",
            "float32",
            "[E]",
            "of NVFP4: what an expert's block scales are worth",
            optional=True,
        ),
        Tensor("down_scale_2", "float32", "[E]", "likewise", optional=True),
    ),
    outputs=(Tensor("out", "T", "[N, H]", "the experts' sum"),),
    attributes=(TOP_K, NORMALIZE, INTERLEAVED, LIMIT, ALPHA, SHIFT, WEIGHT_FORMAT, BLOCK_ROWS),
    reference_body=_body,
    kernel=Kernel(
        "moe",
        "bfloat16",
        types=(KernelType("weight_format", "W", "int32", formats=(1, 2, 3), packed=(8, 8, 4)),),
    ),
)
