"""Plots of acceptance: by category, by position in the block, and by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from trtllm_dflash.profile.looks import Look
from trtllm_dflash.profile.result import CategoryResult, SystemResult
from trtllm_dflash.profile.theme import LIGHT, NARROW, annotate, label, legend, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DOT = 5  # points
_ROW = 0.8  # of a category's row, for the systems in it


def acceptance_length_by_category(
    results: Sequence[SystemResult], looks: Mapping[str, Look]
) -> Figure:
    """Draw a row for each category of prompts, with a marker for each system's acceptance length.

    Rows are sorted by the first system's. Within a row every system has a height of its own, so
    that equal values are all seen.
    """

    def length(row: CategoryResult) -> float:
        return row.acceptance.acceptance_length

    ordered = sorted(results[0].by_category, key=length)
    categories = [row.category for row in ordered]
    places = {name: place for place, name in enumerate(categories)}
    longest = dict.fromkeys(categories, 1.0)
    height = max(0.3, 0.09 * len(results))  # inches, of a row
    figure, axes = new_figure(NARROW, 0.9 + height * len(categories))
    for index, result in enumerate(results):
        rows = result.by_category
        for row in rows:
            longest[row.category] = max(longest[row.category], length(row))
        look = looks[result.system]
        points = look.points() | {"markersize": _DOT, "markeredgewidth": 1.2}
        above = _ROW * ((index + 0.5) / len(results) - 0.5)
        axes.plot(
            [length(row) for row in rows],
            [places[row.category] - above for row in rows],
            linestyle="",
            label=result.system,
            zorder=3 + index,
            **points,
        )
        mean = result.acceptance.acceptance_length
        axes.axvline(mean, color=look.colour, linewidth=1, linestyle=look.dashes, zorder=1)
    for name, place in places.items():
        axes.plot(
            [1, longest[name]], [place, place], color=LIGHT["grid"], linewidth=3, zorder=2
        )
    axes.set_yticks(list(places.values()), categories, color=LIGHT["ink"])
    axes.grid(visible=False, axis="y")
    axes.set_xlim(left=0.93)
    label(axes, "τ: tokens a step, bonus included (vertical lines: all prompts)", "")
    legend(axes, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    return figure


def acceptance_by_position(result: SystemResult, looks: Mapping[str, Look]) -> Figure:
    """Draw how often each draft was accepted: over all prompts, and the range of categories."""
    shares = result.acceptance.by_position
    figure, axes = new_figure(NARROW, 3.4)
    places = range(1, len(shares) + 1)
    axes.bar(
        places,
        shares,
        color=looks[result.system].colour,
        width=0.62,
        label="all prompts",
        zorder=2,
    )
    by_category = [row.acceptance.by_position for row in result.by_category]
    by_draft = list(zip(*filter(None, by_category), strict=True))
    axes.vlines(
        places,
        [min(values) for values in by_draft],
        [max(values) for values in by_draft],
        color=LIGHT["ink"],
        linewidth=1.4,
        label="lowest to highest category",
        zorder=3,
    )
    for place, share in zip(places, shares, strict=True):
        annotate(axes, f"{share:.0%}", (place, share), xytext=(5, 3), fontsize=9)
    axes.set_xticks(list(places))
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25%", "50%", "75%", "100%"])
    axes.grid(visible=False, axis="x")
    label(axes, "position of the draft in the block", "accepted, of all steps")
    legend(axes, loc="upper right")
    return figure


def step_yields(results: Sequence[SystemResult], looks: Mapping[str, Look]) -> Figure:
    """Draw the histogram of acceptance lengths: the share of steps that yielded 1, 2, … tokens."""
    figure, axes = new_figure(NARROW, 3.2)
    longest = max(len(result.acceptance.histogram) for result in results)
    width = 0.8 / len(results)
    for index, result in enumerate(results):
        counts = result.acceptance.histogram[1:]
        steps = max(1, result.acceptance.steps)
        shift = (index - (len(results) - 1) / 2) * width
        places = [tokens + shift for tokens in range(1, len(counts) + 1)]
        shares = [count / steps for count in counts]
        axes.bar(
            places,
            shares,
            width=width * 0.9,
            label=result.system,
            zorder=2,
            **looks[result.system].bar(),
        )
    axes.set_xticks(range(1, longest))
    axes.grid(visible=False, axis="x")
    label(axes, "tokens of a step", "share of steps")
    legend(axes, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    return figure
