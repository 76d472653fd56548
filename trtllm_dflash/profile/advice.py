"""Which draft_len pays at which batch size, from measured or estimated points."""

from __future__ import annotations

from collections.abc import Sequence

from trtllm_dflash.errors import UsageError
from trtllm_dflash.options.draft_len_schedule import DraftLenSchedule
from trtllm_dflash.profile.curve import CurvePoint
from trtllm_dflash.profile.result import Advice, BatchAdvice

# Draft lengths within this share of the best count as equally good, and the smallest is taken.
# It does less work a step, and loses less where texts are harder to draft.
EQUALLY_GOOD = 0.01


def advise(dflash: Sequence[CurvePoint], plain: Sequence[CurvePoint]) -> Advice:
    """Return the best draft_len for each batch size that both engines have points of.

    `dflash` has points with several draft lengths; 0 stands for "off".

    Raises:
        UsageError: if there is no common batch size.
    """
    baselines = {point.batch: point for point in plain}
    batches = sorted({point.batch for point in dflash} & set(baselines))
    if not batches:
        raise UsageError(
            "no batch size has a point with drafts and a plain one: there is nothing to compare."
        )
    rows = []
    for batch in batches:
        best = _best([point for point in dflash if point.batch == batch])
        row = BatchAdvice(
            batch=batch,
            draft_len=best.draft_len,
            block_size=best.draft_len + 1,
            tokens_per_second_per_user=best.tokens_per_second_per_user,
            speedup=best.tokens_per_second_per_user
            / baselines[batch].tokens_per_second_per_user,
        )
        rows.append(row)
    return Advice(rows, _stops_paying_at(rows), schedule(rows).to_json())


def schedule(rows: Sequence[BatchAdvice]) -> DraftLenSchedule:
    """Return the best draft_len by batch size; sizes in between use the next larger one tried."""
    pairs = [(row.batch, row.draft_len) for row in rows]
    following = [*pairs[1:], (0, -1)]
    changes = [
        pair for pair, after in zip(pairs, following, strict=True) if pair[1] != after[1]
    ]
    return DraftLenSchedule(tuple(changes))


def _best(points: Sequence[CurvePoint]) -> CurvePoint:
    """Return the point of the smallest draft_len that is about as fast as the fastest."""
    best = max(point.tokens_per_second_per_user for point in points)
    lowest = best * (1 - EQUALLY_GOOD)
    good = [point for point in points if point.tokens_per_second_per_user >= lowest]
    return min(good, key=lambda point: point.draft_len)


def _stops_paying_at(rows: Sequence[BatchAdvice]) -> int | None:
    """Return the smallest batch size from which on no row is faster than the plain engine."""
    first = None
    for row in reversed(rows):
        if row.speedup > 1:
            break
        first = row.batch
    return first
