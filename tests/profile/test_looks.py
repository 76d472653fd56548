"""Looks of systems in plots: ten tell apart, with colour and without, also at one place."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from trtllm_dflash.profile.curve import Curve, CurvePoint
from trtllm_dflash.profile.looks import looks_by_name
from trtllm_dflash.profile.result import PLAIN, Profile
from trtllm_dflash.profile.theme import DARK, LIGHT

NAMES = [PLAIN, *(f"DFlash {drafts}" for drafts in range(6)), "reference", "hf", "hf lookup"]


def test_ten_systems_tell_apart_by_colour() -> None:
    looks = looks_by_name(NAMES)
    assert len({look.colour for look in looks.values()}) == len(NAMES)
    assert looks[PLAIN].colour == LIGHT["plain"]


def test_ten_systems_tell_apart_without_colour() -> None:
    looks = looks_by_name(NAMES).values()
    assert len({look.marker for look in looks}) == len(NAMES)
    assert len({look.hatch for look in looks}) == len(NAMES)
    dashes = [look.dashes for look in looks]
    assert all(one != other for one, other in pairwise(dashes))


def test_sixty_systems_differ_in_something() -> None:
    looks = looks_by_name([str(number) for number in range(60)]).values()
    assert len({(look.colour, look.marker, look.dashes) for look in looks}) == 61


def test_a_look_belongs_to_the_name_alone() -> None:
    assert looks_by_name([*NAMES, *NAMES]) == looks_by_name(NAMES)


def test_themes_have_the_same_roles_and_no_colour_twice() -> None:
    assert LIGHT.keys() == DARK.keys()
    for colours in (LIGHT, DARK):
        assert len(set(colours.values())) == len(colours)


@pytest.mark.slow
def test_curves_at_one_place_are_all_seen() -> None:
    pytest.importorskip("matplotlib")
    from trtllm_dflash.profile.curve_plot import throughput_against_interactivity

    point = CurvePoint.of_step(batch=1, draft_len=0, acceptance_length=1, step_seconds=0.1)
    figure = throughput_against_interactivity([Curve(name, (point,)) for name in NAMES])
    lines = figure.axes[0].get_lines()
    assert {line.get_markerfacecolor() for line in lines} == {"none"}
    sizes = [line.get_markersize() for line in lines]
    assert sizes == sorted(set(sizes), reverse=True)
    texts = figure.axes[0].texts
    assert len({text.xyann for text in texts}) > 5


@pytest.mark.slow
def test_equal_acceptance_is_drawn_side_by_side(found: Profile) -> None:
    pytest.importorskip("matplotlib")
    from trtllm_dflash.profile.acceptance_plots import acceptance_length_by_category

    drafting = next(result for result in found.results if result.acceptance.by_position)
    equal = [replace(drafting, system=name) for name in NAMES]
    figure = acceptance_length_by_category(equal, looks_by_name(NAMES))
    rows = [
        tuple(line.get_ydata())
        for line in figure.axes[0].get_lines()
        if line.get_label() in NAMES
    ]
    assert len(set(rows)) == len(NAMES)
