"""The whole step graph with plugin nodes over the stand-in driver: tokens of the CPU engine."""

from __future__ import annotations

from collections.abc import Callable

import pytest

pytest.importorskip("tensorrt_rtx")
pytest.importorskip("cuda.bindings.driver")

from tests.stand_in.checks import check_arriving, check_drafts, check_splits, check_tokens
from tests.stand_in.driver import Setup
from tests.stand_in.pairs import FOUR_SLOTS, PAIRS, Engines
from tests.stand_in.process import StandIn


def test_tokens_of_the_quick_pair(
    quick_stand_in: StandIn, pair_engines: Callable[[str], Engines]
) -> None:
    engines, near = pair_engines("llama"), PAIRS["llama"].near
    check_tokens(quick_stand_in, engines, Setup(), near)
    check_drafts(quick_stand_in, engines, Setup(late=True), near)
    check_arriving(quick_stand_in, engines, Setup(late=True), near, {1, 2, 3})


@pytest.mark.slow
def test_tokens_where_keys_are_split(
    quick_stand_in: StandIn, pair_engines: Callable[[str], Engines]
) -> None:
    check_splits(quick_stand_in, pair_engines("long"), PAIRS["long"].near)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PAIRS if name != "long"])
def test_tokens_are_the_twins(
    stand_in: StandIn, pair_engines: Callable[[str], Engines], name: str
) -> None:
    late = list(PAIRS).index(name) % 2 == 1
    engines, near = pair_engines(name), PAIRS[name].near
    check_tokens(stand_in, engines, Setup(late=late), near)
    if PAIRS[name].variant:
        check_drafts(stand_in, engines, Setup(late=not late), near)
    if PAIRS[name].build == FOUR_SLOTS:
        check_arriving(stand_in, engines, Setup(late=not late), near, {3, 4})
