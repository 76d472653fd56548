"""How attention's work is dealt out where sequences are of different lengths.

It is the rule of plugins/kernels/attention_deal.cuh, for a causal block that is one tile of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from trtllm_dflash.trt_plugins.attention_plans import AttentionPlan, attention_splits


@dataclass(frozen=True)
class _Slot:
    slot: int
    tiles: int  # of keys, in an item
    items: int


def items_of_ctas(
    plan: AttentionPlan, lengths: Sequence[int], kv_heads: int
) -> list[list[tuple[int, int]]]:
    """Return the items of each CTA: slot, and tiles of keys.

    `lengths` are those of the sequences, with the block.

    Raises:
        ValueError: if a block is more than one tile of rows.
    """
    if plan.row_tiles != 1:
        raise ValueError(f"a block of {plan.row_tiles} tiles of rows; expected one")
    slots = []
    items = []
    for slot, length in enumerate(lengths):
        tiles = -(-length // plan.tile.keys)
        splits = attention_splits(tiles, plan.even_splits, plan.split_limit)
        share = -(-tiles // splits)
        slots.append(_Slot(slot, share, splits * kv_heads))
        parts = [max(0, min(share, tiles - split * share)) for split in range(splits)]
        items.append([(slot, part) for part in parts * kv_heads])
    slots.sort(key=lambda one: (-one.tiles, one.slot))
    listed = [item for one in slots for item in items[one.slot]]
    shares = [one.tiles for one in slots for _ in range(one.items)]
    found = [listed[cta : cta + 1] for cta in range(plan.ctas)]
    bounds = _bounds(shares[: plan.ctas], shares[plan.ctas :])
    for cta, (begin, end) in enumerate(pairwise(bounds)):
        found[cta] += listed[plan.ctas + begin : plan.ctas + end]
    return found


def _bounds(firsts: Sequence[int], rest: Sequence[int]) -> list[int]:
    """Return where in the rest each CTA's items begin, and where the last one's end."""
    if not rest:
        return []
    even = -(-(sum(firsts) + sum(rest)) // len(firsts))
    goals = range(even, even + 32 * -(-rest[0] // 31), -(-rest[0] // 31))

    def rooms(goal: int) -> list[int]:
        return [max(goal - first, 0) // rest[0] * rest[0] for first in firsts]

    found = next(rooms(goal) for goal in goals if sum(rooms(goal)) >= sum(rest))
    ends = [room * sum(rest) // sum(found) for room in accumulate(found)]
    return [0, *(_nearest(rest, end) for end in ends)]


def _nearest(rest: Sequence[int], tiles: int) -> int:
    """Return the item that begins nearest to so many tiles behind the first one's beginning."""
    for number, item in enumerate(rest):
        if tiles < item:
            return number + (tiles >= item - item // 2)
        tiles -= item
    return len(rest)
