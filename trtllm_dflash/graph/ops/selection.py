"""DFlashSelect: one candidate of each row, each chosen with the one before it."""

from __future__ import annotations

import onnx_ir as ir

from trtllm_dflash.graph.builder import GraphBuilder
from trtllm_dflash.graph.kernel_specs import Kernel
from trtllm_dflash.graph.ops.spec import Attribute, OpSpec, Tensor

# 2 ** this rows behind an anchor are walked through; a block has fewer.
_DOUBLINGS = 6
TOP_K = Attribute("top_k", 16, "candidates of each row, at most 64 and at most Vd")


def _body(
    g: GraphBuilder,
    logits: ir.Value,
    hidden: ir.Value,
    anchor_row: ir.Value,
    predecessor: ir.Value,
    successor: ir.Value,
) -> tuple[ir.Value, ...]:
    top_k = g.Reshape(g.attribute(TOP_K.name, TOP_K.onnx_type), [1])
    logits = _finite_or_less(g, logits)
    unary, places = g.emit("TopK", [logits, top_k], {"axis": -1}, num_outputs=2)  # [B, N, k]
    # Before a row stands one of the candidates of the row before; before the first the anchor.
    sizes = g.Concat(g.size(places, 0), [1], top_k, g.size(anchor_row, 1), axis=0)
    anchors = g.Expand(g.Unsqueeze(anchor_row, [1, 2]), sizes)
    shifted = g.Concat(anchors, g.Gather(predecessor, places, axis=0), axis=1)
    before = g.Slice(shifted, [0], g.size(places, 1), [1])  # [B, N, k, R]
    weighted = g.Mul(_wide(g, before), g.Unsqueeze(_wide(g, hidden), [2]))
    behind = _wide(g, g.Gather(successor, places, axis=0))
    pairs = g.MatMul(weighted, g.Transpose(behind, perm=[0, 1, 3, 2]))  # [B, N, k before, k]
    scores = _finite_or_less(g, g.Add(pairs, g.Unsqueeze(unary, [2])))
    best = g.ArgMax(scores, axis=-1, keepdims=0)  # [B, N, k]: behind each candidate before
    chosen = g.Slice(_composed(g, best), [0], [1], [2])  # all are the same: one anchor
    return (g.Squeeze(g.GatherElements(places, chosen, axis=2), [2]),)


def _composed(g: GraphBuilder, maps: ir.Value) -> ir.Value:
    """Return the composition of the first j + 1 maps for each j; maps [B, N, k], N at most 64.

    A map says for each candidate which one follows it. By doubling: behind round i each entry is
    the composition of 2^(i+1) maps, or of all if there are fewer.
    """
    rows = g.size(maps, 1)
    same = g.Unsqueeze(g.arange(g.size(maps, 2)), [0, 1])
    for doubling in range(_DOUBLINGS):
        sizes = g.Concat(g.size(maps, 0), [1 << doubling], g.size(maps, 2), axis=0)
        shifted = g.Concat(g.Expand(same, sizes), maps, axis=1)
        maps = g.GatherElements(maps, g.Slice(shifted, [0], rows, [1]), axis=2)
    return maps


def _wide(g: GraphBuilder, x: ir.Value) -> ir.Value:
    return g.cast(x, ir.DataType.FLOAT)


def _finite_or_less(g: GraphBuilder, x: ir.Value) -> ir.Value:
    """Return x with -inf for NaN, so that an order is defined."""
    return g.Where(g.IsNaN(x), float("-inf"), x)


SELECT = OpSpec(
    name="DFlashSelect",
    meaning=(
        "One of each row's top_k likeliest places, from the first row on. It is the one with the"
        " largest score: its logit + the sum over R of predecessor[before] · hidden · successor."
        " There `before` is the row before's choice. Among equals the likelier wins, then the lower"
        " place; NaN counts as -inf."
    ),
    inputs=(
        Tensor(
            "logits", "float32", "[B, N, Vd]", "of the rows behind the anchor, N at most 64"
        ),
        Tensor("hidden", "T", "[B, N, R]", "the rows, projected to the codebooks' rank"),
        Tensor("anchor_row", "T", "[B, R]", "the anchor's row of the predecessors' codebook"),
        Tensor("predecessor", "T", "[Vd, R]", "a row of each place, for what stands before"),
        Tensor("successor", "T", "[Vd, R]", "a row of each place, for what stands behind"),
    ),
    outputs=(Tensor("places", "int64", "[B, N]", "the choices, 0 … Vd-1"),),
    attributes=(TOP_K,),
    reference_body=_body,
    kernel=Kernel("select", "bfloat16"),
)
