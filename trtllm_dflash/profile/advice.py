"""Which number of drafts pays at which batch size, from measured or estimated points."""

from __future__ import annotations

from collections.abc import Sequence

from trtllm_dflash.errors import UsageError
from trtllm_dflash.options.draft_len_schedule import DraftLenSchedule
from trtllm_dflash.profile.curve import CurvePoint
from trtllm_dflash.profile.result import Advice, BatchAdvice

# Numbers of drafts within this of the best count as equally good, and the smallest of them is
# taken: less work a step, and less to lose where texts are harder to draft.
EQUALLY_GOOD = 0.01


def advise(dflash: Sequence[CurvePoint], plain: Sequence[CurvePoint]) -> Advice:
    """From the points of a DFlash engine with several numbers of drafts, 0 among them for "off",
    and of a plain engine.

    Batch sizes that both have are looked at.

    Raises:
        UsageError: if there is no such batch size.
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
        user = best.tokens_per_second_per_user
        speedup = user / baselines[batch].tokens_per_second_per_user
        rows.append(BatchAdvice(batch, best.draft_len, best.draft_len + 1, user, speedup))
    return Advice(rows, _stops_paying_at(rows), schedule(rows).to_json())


def schedule(rows: Sequence[BatchAdvice]) -> DraftLenSchedule:
    """The best number of drafts by batch size; sizes in between go with the next larger one that
    was tried.
    """
    pairs = [(row.batch, row.draft_len) for row in rows]
    following = [*pairs[1:], (0, -1)]
    return DraftLenSchedule(
        tuple(pair for pair, after in zip(pairs, following, strict=True) if pair[1] != after[1])
    )


def _best(points: Sequence[CurvePoint]) -> CurvePoint:
    most = max(point.tokens_per_second_per_user for point in points)
    good = [
        point for point in points if point.tokens_per_second_per_user >= most * (1 - EQUALLY_GOOD)
    ]
    return min(good, key=lambda point: point.draft_len)


def _stops_paying_at(rows: Sequence[BatchAdvice]) -> int | None:
    """The smallest batch size from which on no row is faster than the plain engine."""
    first = None
    for row in reversed(rows):
        if row.speedup > 1:
            break
        first = row.batch
    return first
