"""Two ways of decoding where every user gets the same: throughput at equal interactivity."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from trtllm_dflash.profile.curve import CurvePoint


def throughput_at(points: Sequence[CurvePoint], user: float) -> float:
    """Tokens a second of a GPU at an interactivity within a frontier, in straight lines between its
    points.

    Below the frontier it is that of the first point, beyond the last one 0: nothing is that fast.
    """
    if user <= points[0].tokens_per_second_per_user:
        return points[0].tokens_per_second_per_gpu
    for a, b in pairwise(points):
        if user <= b.tokens_per_second_per_user:
            share = (user - a.tokens_per_second_per_user) / (
                b.tokens_per_second_per_user - a.tokens_per_second_per_user
            )
            return a.tokens_per_second_per_gpu + share * (
                b.tokens_per_second_per_gpu - a.tokens_per_second_per_gpu
            )
    return 0.0
