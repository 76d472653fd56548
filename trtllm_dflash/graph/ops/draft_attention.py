"""DFlashDraftAttention: the drafter's attention, whose context arrives only as injected keys and
values.
"""

from __future__ import annotations

import onnx_ir as ir

from trtllm_dflash.graph.builder import GraphBuilder
from trtllm_dflash.graph.kernel_specs import ATTENTION
from trtllm_dflash.graph.ops import attention
from trtllm_dflash.graph.ops.attention import attend, visible_rows, within_window, write
from trtllm_dflash.graph.ops.spec import Attribute, OpSpec, Tensor

CAUSAL = Attribute(
    "causal", 0, "1: a block row sees no later block row; 0: the block is bidirectional"
)
BLOCK_ROWS = Tensor("block_rows", "int64", "[T]", "0 … T-1, T may be 0", body_only=True)


def _body(
    g: GraphBuilder,
    q: ir.Value,
    k: ir.Value,
    v: ir.Value,
    key_cache: ir.Value,
    value_cache: ir.Value,
    positions: ir.Value,
    kv_positions: ir.Value,
    block_rows: ir.Value,
    sinks: ir.Value | None,
) -> tuple[ir.Value, ...]:
    # Sizes of what all layers have in common, so that ONNX Runtime computes masks once for all.
    total = g.size(positions, 1)
    block = g.size(block_rows, 0)
    first = g.Slice(positions, [0], [1], [1])  # [B, 1]
    # By the last row, since a block may have none: then all context rows stay where they are.
    last = g.Slice(positions, [-1], [2**31 - 1], [1])
    block_start = g.Sub(g.Add(last, 1), block)
    block_positions = g.Add(block_start, block_rows)  # [B, T]
    order = _contiguous_rows(g, total, block, g.Sub(block_start, first))
    start = g.Squeeze(first, [1])
    keys = write(g, key_cache, g.GatherND(k, order, batch_dims=1), start)
    values = write(g, value_cache, g.GatherND(v, order, batch_dims=1), start)

    rows, held = visible_rows(g, kv_positions, key_cache, first, total)
    distance = g.Sub(
        g.Unsqueeze(block_positions, [1, 2, 4]), held
    )  # [B, 1, 1, T, L], negative: a later row
    block_end = g.Unsqueeze(g.Add(block_start, block), [2, 3, 4])
    written = g.Less(held, block_end)
    not_later = g.Or(
        g.Equal(g.attribute(CAUSAL.name, CAUSAL.onnx_type), 0), g.GreaterOrEqual(distance, 0)
    )
    visible = g.And(g.And(written, not_later), within_window(g, g.Abs(distance)))
    at_least = g.Max(block, 1)
    out = attend(g, q, keys, values, visible, rows, at_least, sinks, key_cache)
    return out, keys, values


def _contiguous_rows(
    g: GraphBuilder, total: ir.Value, block: ir.Value, committed: ir.Value
) -> ir.Value:
    """Row indices [B, S+T, 1] that put the block right behind the committed context rows.

    The S context rows hold `committed` good ones [B, 1]; what was rejected lies between them and
    the block. One write of S+T rows must come out as: context 0 … committed-1, block 0 … T-1, then
    anything (nobody reads it).

        k rows    c0 c1 ✗ ✗ b0 b1 b2        (S = 4, T = 3, committed = 2)
        written   c0 c1 b0 b1 b2 b2 b2
    """
    slot = g.arange(total)  # [S+T]
    behind = g.Sub(slot, committed)  # [B, S+T]: index in the block
    from_block = g.Add(g.Min(behind, g.Sub(block, 1)), g.Sub(total, block))
    return g.Unsqueeze(g.Where(g.Less(behind, 0), slot, from_block), [2])


DRAFT_ATTENTION = OpSpec(
    name="DFlashDraftAttention",
    meaning=(
        "Write the committed context rows' and the block's keys and values, then attention of the"
        " block over both."
    ),
    inputs=(
        Tensor("q", "T", "[B, T, Hq, D]", "queries of the block, rotated; T may be 0"),
        Tensor(
            "k",
            "T",
            "[B, S+T, Hkv, D]",
            "keys of the S context rows, then of the T block rows, rotated",
        ),
        Tensor("v", "T", "[B, S+T, Hkv, D]", "values, likewise"),
        *attention.caches("T"),
        Tensor(
            "positions",
            "int64",
            "[B, S+T]",
            "of the rows of k: consecutive in the context, then in the block, whose "
            "anchor stands behind the committed context rows",
        ),
        attention.kv_positions("every position of the block"),
        BLOCK_ROWS,
        attention.SINKS,
    ),
    outputs=(
        Tensor("out", "T", "[B, T, Hq, D]", "attention output"),
        *attention.cache_outputs("T"),
    ),
    attributes=(attention.SCALE, attention.WINDOW, attention.RING, CAUSAL),
    reference_body=_body,
    kernel=ATTENTION,
)
