"""How attention's work is divided: the plan of plugins/kernels/attention_params.h in Python."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import count

from trtllm_dflash.trt_plugins.kernel_sources import constants
from trtllm_dflash.trt_plugins.params import MAX_PROCESSORS

_ATTENTION = constants("attention_params.h")


@dataclass(frozen=True)
class AttentionTile:
    """Packed rows of q that a CTA takes, the warps that divide them, the keys in shared memory at
    once.

    A multiprocessor has registers for `ctas` CTAs.
    """

    rows: int
    warps: int
    keys: int
    ctas: int


@dataclass(frozen=True)
class AttentionPlan:
    """`row_tiles` of a slot and key head, and `ctas` of the launch; a CTA's shared memory, and the
    workspace, in bytes.

    `even_splits` are those of each slot's keys where all have as many, `split_limit` the most.
    """

    tile: AttentionTile
    row_tiles: int
    ctas: int
    even_splits: int
    split_limit: int
    shared_bytes: int
    workspace_bytes: int


def attention_tiles(head_dim: int) -> tuple[AttentionTile, ...]:
    """Return all tiles of a head_dim, from few rows to many; there is a kernel for each."""
    if head_dim > 128:
        return AttentionTile(32, 2, 32, 2), AttentionTile(64, 4, 32, 2)
    if head_dim <= 64:
        return (
            AttentionTile(16, 1, 64, 5),
            AttentionTile(32, 1, 64, 3),
            AttentionTile(64, 2, 64, 3),
            AttentionTile(96, 2, 64, 2),
            AttentionTile(128, 4, 32, 3),
        )
    return (
        AttentionTile(16, 1, 64, 4),
        AttentionTile(32, 1, 64, 2),
        AttentionTile(64, 2, 64, 2),
        AttentionTile(128, 4, 32, 2),
    )


def attention_plan(
    *,
    batch: int,
    rows: int,
    q_heads: int,
    kv_heads: int,
    head_dim: int,
    cache_len: int,
    window: int,
    processors: int,
    processor_shared_bytes: int,
) -> AttentionPlan:
    """Return the plan of one launch of `rows` rows a slot; `processors` are multiprocessors, each
    with so much shared memory.
    """
    packed = rows * (q_heads // kv_heads)
    tile = _tile(head_dim, packed)
    row_tiles = _ceil(packed, tile.rows)
    shared_bytes = _shared_bytes(head_dim, tile)
    fit = processor_shared_bytes // (shared_bytes + _ATTENTION["kReservedSharedBytes"])
    places = processors * min(max(fit, 1), tile.ctas)
    tiles = row_tiles * kv_heads * batch
    limit = min(max(places // (row_tiles * kv_heads), 1), _ATTENTION["kMaxSplits"])
    even = even_splits(tiles, places, limit)
    limit = limit // even * even
    key_tiles = _ceil(_most_keys(cache_len, window, rows), tile.keys)
    split_limit = attention_splits(key_tiles, even, limit)
    head_rows = batch * rows * q_heads
    workspace = split_limit * head_rows * (head_dim + 2) * 4 if split_limit > 1 else 0
    ctas = min(tiles * split_limit, places)
    return AttentionPlan(tile, row_tiles, ctas, even, split_limit, shared_bytes, workspace)


def attention_splits(tiles: int, even: int, limit: int) -> int:
    """Return in how many splits a row tile's keys are dealt out that are `tiles` tiles of keys."""
    wanted = even * _ceil(tiles, even * _ATTENTION["kMaxSplitTiles"])
    return max(min(wanted, limit, tiles // _ATTENTION["kMinSplitTiles"]), 1)


def even_splits(tiles: int, places: int, limit: int) -> int:
    """Return the fewest splits of each of `tiles` row tiles that fill rounds of `places` CTAs.

    Hardly more places are empty than with any other number of splits up to `limit` that four
    rounds have places for.
    """
    most = min(4 * places // tiles, limit)

    def filled(splits: int) -> Fraction:
        return Fraction(tiles * splits, _ceil(tiles * splits, places))

    best = max(map(filled, range(1, most + 1)), default=filled(1))
    return next(splits for splits in count(1) if filled(splits) >= best * Fraction(19, 20))


def attention_workspace(
    *,
    batch: int,
    rows: int,
    q_heads: int,
    kv_heads: int,
    head_dim: int,
    cache_len: int,
    window: int,
) -> int:
    """Bytes that suffice for these and all smaller batches and rows, on any GPU.

    Fewer tiles are split more often, so the largest call is not always the one that needs most.
    """
    return max(
        _workspace_of(
            batch, one, q_heads, kv_heads, head_dim, _most_keys(cache_len, window, one)
        )
        for one in range(1, rows + 1)
    )


def _workspace_of(
    batch: int, rows: int, q_heads: int, kv_heads: int, head_dim: int, keys: int
) -> int:
    """Bytes that suffice for steps of so many rows, for this and all smaller batches on any GPU.

    A slot has no more splits than a GPU has places for. All slots together have one for each
    kMaxSplitTiles tiles, one more each, and what `even_splits` adds: four rounds of places at most.
    """
    packed = rows * (q_heads // kv_heads)
    tile = _tile(head_dim, packed)
    places = MAX_PROCESSORS * tile.ctas
    of_slot = _ceil(packed, tile.rows) * kv_heads
    tiles = _ceil(keys, tile.keys)
    most = max(tiles // _ATTENTION["kMinSplitTiles"], 1)
    limit = min(places // of_slot, _ATTENTION["kMaxSplits"], most)
    if limit <= 1:
        return 0
    dealt = batch * (tiles // _ATTENTION["kMaxSplitTiles"] + 1) + 4 * places // of_slot
    splits = min(batch * limit, dealt)  # of all slots
    return splits * rows * q_heads * (head_dim + 2) * 4


def _most_keys(cache_len: int, window: int, rows: int) -> int:
    """Return how many keys the rows of a step can see."""
    return min(cache_len, window + rows) if window else cache_len


def _tile(head_dim: int, packed: int) -> AttentionTile:
    tiles = attention_tiles(head_dim)
    return next((tile for tile in tiles if packed <= tile.rows), tiles[-1])


def _shared_bytes(head_dim: int, tile: AttentionTile) -> int:
    staged = (
        (tile.rows + 2 * _ATTENTION["kAttentionStages"] * tile.keys)
        * (head_dim + _ATTENTION["kRowPadding"])
        * 2
    )
    result = tile.rows * (head_dim + 4) * 4 + 4 * tile.rows * 2 * 4
    return max(staged, result)


def _ceil(count: int, unit: int) -> int:
    return -(-count // unit)
