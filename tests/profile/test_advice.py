"""The recommended number of drafts, on made-up points."""

from __future__ import annotations

import pytest

from trtllm_dflash.errors import UsageError
from trtllm_dflash.profile.advice import advise
from trtllm_dflash.profile.curve import Curve, CurvePoint, frontier


def spot(batch: int, draft_len: int, rate: float) -> CurvePoint:
    """Return a point of `rate` tokens/s per user."""
    return CurvePoint.of_step(
        batch=batch, draft_len=draft_len, acceptance_length=2.0, step_seconds=2.0 / rate
    )


PLAIN = [spot(batch, 0, rate) for batch, rate in ((1, 100), (2, 90), (4, 80), (8, 60))]


def test_advise_finds_the_best_and_where_it_stops() -> None:
    dflash = [spot(1, 0, 90), spot(1, 3, 150), spot(1, 7, 240)]
    dflash += [spot(2, 0, 85), spot(2, 3, 130), spot(2, 7, 160)]
    dflash += [spot(4, 0, 75), spot(4, 3, 79), spot(4, 7, 60)]
    dflash += [spot(8, 0, 58), spot(8, 3, 40), spot(8, 7, 30)]
    advice = advise(dflash, PLAIN)
    assert [(row.batch, row.draft_len, row.block_size) for row in advice.batches] == [
        (1, 7, 8),
        (2, 7, 8),
        (4, 3, 4),
        (8, 0, 1),
    ]
    assert [row.speedup for row in advice.batches] == pytest.approx(
        [2.4, 160 / 90, 79 / 80, 58 / 60]
    )
    assert advice.stops_paying_at == 4
    assert advice.draft_len_schedule == {"2": 7, "4": 3, "8": 0}


def test_advise_where_drafting_always_pays() -> None:
    advice = advise([spot(1, 3, 101), spot(4, 3, 70), spot(8, 3, 61)], PLAIN)
    assert advice.stops_paying_at is None  # a dip at 4 is not the end
    assert advice.draft_len_schedule == {"8": 3}


def test_advise_takes_the_smallest_of_equals() -> None:
    assert advise([spot(1, 2, 199), spot(1, 5, 200)], PLAIN).batches[0].draft_len == 2
    assert advise([spot(1, 2, 195), spot(1, 5, 200)], PLAIN).batches[0].draft_len == 5


def test_advise_leaves_out_batches_without_a_baseline() -> None:
    assert [row.batch for row in advise([spot(1, 3, 120), spot(3, 3, 120)], PLAIN).batches] == [
        1
    ]
    with pytest.raises(
        UsageError, match="no batch size has a point with drafts and a plain one"
    ):
        advise([spot(3, 3, 120)], PLAIN)


def test_curve_point_has_rates_by_user_and_gpu() -> None:
    point = CurvePoint.of_step(
        batch=6, draft_len=3, acceptance_length=2.5, step_seconds=0.05, gpus=2
    )
    assert point.tokens_per_second_per_user == pytest.approx(50)
    assert point.tokens_per_second_per_gpu == pytest.approx(150)


def test_frontier_keeps_unbeaten_points() -> None:
    points = [spot(1, 3, 100), spot(2, 3, 60), spot(4, 3, 20), spot(4, 7, 25), spot(8, 3, 12)]
    assert frontier(points) == [points[1], points[0]]  # throughputs 100, 120, 80, 100, 96


def test_curve_is_read_back_from_json() -> None:
    curve = Curve("DFlash", (spot(1, 3, 100), spot(2, 3, 60)), estimated=True)
    assert Curve.from_json(curve.to_json()) == curve
