"""DFlashLookup: drafts from the slot's own text, where they promise more than the drafter's.

Where an answer repeats the text, what followed the last tokens there is a better guess than any
drafter's. It is prompt lookup decoding (Saxena 2023), in the step, over prompt and answer.

For each slot the longest match of the last tokens counts, among equals the latest. What followed it
is drafted. A match p tokens back says that the text repeats with period p. So drafts that would
reach beyond the last token go on behind the match again.

Which source fills a block depends on what its blocks have got accepted in that slot. A block is of
class 0 if the drafter filled it, else of a class by the match's length. Each class has a running
mean of accepted drafts, which begins with a prior. Lookup takes a block if at least `MIN_MATCH`
tokens match, and the mean of the match's class is no less than the drafter's. Where only lookup may
fill it and nothing matches, it repeats the last token. Such a block has no mean.

All of it is in integers, so that body and kernel agree to the bit. The history alone is float32, as
DFlashAdjust writes it. The bonus does not stand in it yet.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from trtllm_dflash.graph.builder import GraphBuilder
from trtllm_dflash.graph.kernel_specs import Kernel
from trtllm_dflash.graph.ops.spec import OpSpec, Tensor
from trtllm_dflash.options.draft_sources import NO_MATCH, NUM_CLASSES, SOURCE_BITS, TALLY_SIZE

MIN_MATCH = 2
# A match of at least so many tokens is of class 2, 3 and 4; a shorter one of class 1.
CLASS_MATCHES = (3, 4, 6)
MAX_MATCH = CLASS_MATCHES[-1]  # longer ones count as this long
# Accepted drafts of a block that are expected of each class before it has had any, in 1/MEAN_UNIT.
# About what the classes get with the demo pair.
MEAN_UNIT = 256
PRIORS = (208, 256, 384, 640, 1024)
# A block moves its class's mean by 1/MEAN_SHARE of the difference. Simulated with the demo pair's
# drafts on 24 prompts: tau is 1.808 for 4, 1.808 for 8, 1.813 for 16. Eight finds a better drafter
# sooner than sixteen.
MEAN_SHARE = 8
_FLOAT, _INT32, _INT64 = ir.DataType.FLOAT, ir.DataType.INT32, ir.DataType.INT64


def _body(
    g: GraphBuilder,
    history: ir.Value,
    input_ids: ir.Value,
    num_known: ir.Value,
    past_len: ir.Value,
    next_len: ir.Value,
    bonus: ir.Value,
    drafts: ir.Value,
    tally: ir.Value,
    draft_sources: ir.Value,
    kv_positions: ir.Value,
) -> tuple[ir.Value, ...]:
    end = g.Unsqueeze(g.cast(next_len, _INT64), [1])
    text = g.Slice(history, [0], g.size(kv_positions, 0), [2])
    text = g.Squeeze(text, [1, 3])  # [B, L]
    text = g.Where(g.Equal(kv_positions, end), g.cast(bonus, _FLOAT), text)
    matched, last = _longest_match(g, text, end, kv_positions)  # [B, 1] each

    # A match of no token is the last token itself: what it drafts is its repetition.
    period = g.Where(g.Equal(matched, 0), 1, g.Sub(end, last))
    place = g.Add(g.Mod(g.arange(g.size(drafts, 1)), period), 1)
    place = g.Add(place, g.Sub(end, period))
    found = g.cast(g.GatherElements(text, place, axis=1), _INT64)

    means = _means(g, tally, g.Sub(g.size(input_ids, 1), g.cast(num_known, _INT64)),
                   g.Sub(g.Sub(next_len, past_len), num_known))  # fmt: skip
    is_longer = g.GreaterOrEqual(matched, g.as_value(list(CLASS_MATCHES)))  # [B, 3]
    of_match = g.Add(g.ReduceSum(g.cast(is_longer, _INT64), [1], keepdims=1), 1)
    is_better = g.GreaterOrEqual(
        g.GatherElements(means, of_match, axis=1), g.Slice(means, [0], [1], [1])
    )
    sources = g.Unsqueeze(g.cast(draft_sources, _INT64), [1])
    is_match = g.GreaterOrEqual(matched, MIN_MATCH)
    may = g.And(g.And(is_better, is_match), g.Equal(sources, SOURCE_BITS["both"]))  # fmt: skip
    takes = g.Or(may, g.Equal(sources, SOURCE_BITS["lookup"]))

    of_lookup = g.Where(is_match, of_match, NO_MATCH)
    block_class = g.cast(g.Where(takes, of_lookup, 0), _INT32)
    seen = g.Sub(means, _int32(g, PRIORS))
    return (
        g.Where(takes, found, drafts),
        g.Concat(block_class, seen, axis=1),
    )


def _longest_match(
    g: GraphBuilder, text: ir.Value, end: ir.Value, positions: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """Return how many tokens up to `end` match most, and where the latest such match ends.

    text [B, L], end [B, 1], positions [L]; results int64 [B, 1].
    """
    length = g.size(text, 1)
    back = g.constant(np.arange(MAX_MATCH, dtype=np.int64)[:, None])
    before = g.Sub(
        g.Unsqueeze(positions, [0]), back
    )  # [MAX_MATCH, L], negative before the text
    # No token stands before the first.
    lead = g.Expand(-1.0, g.Concat(g.size(text, 0), [MAX_MATCH - 1], axis=0))
    padded = g.Concat(lead, text, axis=1)
    tokens = g.Gather(padded, g.Add(before, MAX_MATCH - 1), axis=1)  # [B, MAX_MATCH, L]
    last = g.Sub(g.Add(end, MAX_MATCH - 1), g.Squeeze(back, [1]))  # [B, MAX_MATCH]
    last = g.Unsqueeze(g.GatherElements(padded, last, axis=1), [2])
    is_same = g.And(g.Equal(tokens, last), g.GreaterOrEqual(before, 0))
    # As many match as there are before the first that does not.
    matched = g.ReduceMin(g.Where(is_same, MAX_MATCH, back), [1], keepdims=0)  # [B, L]
    matched = g.Where(g.Less(positions, end), matched, 0)
    best = g.ReduceMax(g.Add(g.Mul(matched, length), positions), [1], keepdims=1)
    most = g.Div(best, length)
    return most, g.Sub(best, g.Mul(most, length))


def _means(
    g: GraphBuilder, tally: ir.Value, num_verified: ir.Value, accepted: ir.Value
) -> ir.Value:
    """Return each class's mean int32 [B, NUM_CLASSES], once the step's block is counted."""
    means = g.Add(g.Slice(tally, [1], [TALLY_SIZE], [1]), _int32(g, PRIORS))
    block_class = g.Slice(tally, [0], [1], [1])
    is_counted = g.And(
        g.Equal(_int32(g, range(NUM_CLASSES)), block_class),
        g.Unsqueeze(g.Greater(num_verified, 0), [1]),
    )
    block = g.Unsqueeze(g.Mul(accepted, _int32(g, MEAN_UNIT)), [1])
    kept = g.Mul(means, _int32(g, MEAN_SHARE - 1))
    total = g.Add(g.Add(kept, block), _int32(g, MEAN_SHARE // 2))
    return g.Where(is_counted, g.Div(total, _int32(g, MEAN_SHARE)), means)


def _int32(g: GraphBuilder, values: int | tuple[int, ...] | range) -> ir.Value:
    return g.constant(np.array(values, np.int32))


LOOKUP = OpSpec(
    name="DFlashLookup",
    meaning=(
        "The next block's drafts, from the drafter or from the slot's own text: what followed the"
        " latest of the longest matches of its last tokens. The source whose blocks got more"
        " accepted in the slot fills the block. What is committed does not depend on it."
    ),
    inputs=(
        Tensor(
            "history",
            "float32",
            "[B, 1, H, 1]",
            "token ids by position, exact up to 2^24, with the step's from past_len on",
        ),
        Tensor(
            "input_ids", "int64", "[B, S]", "the step's tokens; here only their number counts"
        ),
        Tensor("num_known", "int32", "[B]", "how many of them are decided, 1 … S"),
        Tensor("past_len", "int32", "[B]", "positions before the step; past_len + S < H"),
        Tensor("next_len", "int32", "[B]", "past_len + num_known + accepted drafts"),
        Tensor("bonus", "int64", "[B, 1]", "the token at next_len, the next block's anchor"),
        Tensor("drafts", "int64", "[B, D]", "the drafter's, behind the anchor"),
        Tensor(
            "tally",
            "int32",
            f"[B, {TALLY_SIZE}]",
            "the class of the block that the step verified, then of each class the mean of accepted"
            f" drafts, in 1/{MEAN_UNIT}, less its prior; 0: a new sequence",
        ),
        Tensor(
            "draft_sources",
            "int32",
            "[B]",
            "1: the drafter, 2: lookup, 3: the better one of both",
        ),
        Tensor("kv_positions", "int64", "[L]", "0 … L-1, L > next_len", body_only=True),
    ),
    outputs=(
        Tensor("next_drafts", "int64", "[B, D]", "of the source that was chosen"),
        Tensor(
            "next_tally",
            "int32",
            f"[B, {TALLY_SIZE}]",
            "the class of next_drafts, 0: the drafter's, "
            f"{NO_MATCH}: lookup's without a match; then the means behind this step",
        ),
    ),
    attributes=(),
    reference_body=_body,
    kernel=Kernel("lookup", "bfloat16"),
)
