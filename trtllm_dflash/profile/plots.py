"""The plots of profiles and estimates: each function draws one figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from trtllm_dflash.profile.curve import Curve
from trtllm_dflash.profile.result import PLAIN, CategoryResult, StepBreakdown, SystemResult
from trtllm_dflash.profile.theme import LIGHT, SERIES, annotate, label, legend, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDE, NARROW = 9.6, 5.6  # inches: alone in its row, or beside another
# Part of a step -> field of StepBreakdown, colour.
_PARTS = {
    "verify": ("verify_seconds", SERIES[0]),
    "draft": ("draft_seconds", SERIES[1]),
    "accept": ("accept_seconds", SERIES[2]),
    "host": ("host_seconds", LIGHT["plain"]),
}
_GRAPH_PARTS = ("verify", "accept", "draft")  # in the graph's order
_WITHOUT_LAYER = {"verify": "head", "accept": "accept", "draft": "fc, head"}


def throughput_against_interactivity(
    curves: Sequence[Curve], *, device: str = "GPU", title: str | None = None, log: bool = False
) -> Figure:
    """Draw every curve with its batch sizes; up and to the right is better.

    Curves without drafts are grey, estimated ones dashed. `log` is for throughputs that span
    several orders of magnitude.
    """
    figure, axes = new_figure(WIDE, 4.8)
    colours = colours_by_name([curve.name for curve in curves])
    for curve in curves:
        colour = colours[curve.name]
        x = [point.tokens_per_second_per_user for point in curve.points]
        y = [point.tokens_per_second_per_gpu for point in curve.points]
        dashes = "--" if curve.estimated else "-"
        line = {"color": colour, "linewidth": 2, "marker": "o", "markersize": 6}
        axes.plot(x, y, dashes, label=curve.name, **line)
        for point, place in zip(curve.points, zip(x, y, strict=True), strict=True):
            annotate(axes, str(point.batch), place, color=colour)
    axes.set_xlim(left=0)
    if log:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.margins(0.06)
    label(axes, "tokens/s per user (interactivity)", f"tokens/s per {device} (throughput)")
    legend(axes, loc="best")
    if title:
        axes.set_title(title, color=LIGHT["ink"], fontsize=11, loc="left")
    return figure


def colours_by_name(names: Sequence[str]) -> dict[str, str]:
    """Return grey for "plain", and the series' colours for the others in turn."""
    colours = {PLAIN: LIGHT["plain"]}
    others = [name for name in dict.fromkeys(names) if name != PLAIN]
    for index, name in enumerate(others):
        colours[name] = SERIES[index % len(SERIES)]
    return colours


def acceptance_length_by_category(
    results: Sequence[SystemResult], colours: Mapping[str, str]
) -> Figure:
    """Draw a row for each category of prompts, with a dot for each system's acceptance length.

    Rows are sorted by the first system's; dots of later systems are smaller.
    """

    def length(row: CategoryResult) -> float:
        return row.acceptance.acceptance_length

    categories = [row.category for row in sorted(results[0].by_category, key=length)]
    places = {name: place for place, name in enumerate(categories)}
    longest = dict.fromkeys(categories, 1.0)
    figure, axes = new_figure(NARROW, 0.9 + 0.3 * len(categories))
    for index, result in enumerate(results):
        rows = result.by_category
        for row in rows:
            longest[row.category] = max(longest[row.category], length(row))
        colour, size = colours[result.system], max(4, 10 - 2.5 * index)
        axes.plot(
            [length(row) for row in rows],
            [places[row.category] for row in rows],
            "o",
            color=colour,
            markersize=size,
            label=result.system,
            zorder=3 + index,
        )
        mean = result.acceptance.acceptance_length
        axes.axvline(mean, color=colour, linewidth=1, linestyle=":", zorder=1)
    for name, place in places.items():
        axes.plot([1, longest[name]], [place, place], color=LIGHT["grid"], linewidth=3, zorder=2)
    axes.set_yticks(list(places.values()), categories, color=LIGHT["ink"])
    axes.grid(visible=False, axis="y")
    axes.set_xlim(left=0.93)
    label(axes, "τ: tokens a step, bonus included (dotted: all prompts)", "")
    legend(axes, loc="lower right")
    return figure


def acceptance_by_position(result: SystemResult, colours: Mapping[str, str]) -> Figure:
    """Draw how often each draft was accepted: over all prompts, and the range of categories."""
    shares = result.acceptance.by_position
    figure, axes = new_figure(NARROW, 3.4)
    places = range(1, len(shares) + 1)
    axes.bar(
        places, shares, color=colours[result.system], width=0.62, label="all prompts", zorder=2
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


def where_time_goes(breakdowns: Sequence[StepBreakdown]) -> Figure:
    """Draw a bar for each system and batch size: a step's milliseconds by part."""
    figure, axes = new_figure(NARROW, 0.9 + 0.34 * len(breakdowns))
    names = [f"{one.system}, batch {one.batch}" for one in breakdowns]
    lefts = [0.0] * len(breakdowns)
    for part, (field, colour) in _PARTS.items():
        widths = [1000 * (getattr(one, field) or 0.0) for one in breakdowns]
        if any(widths):
            axes.barh(names, widths, left=lefts, color=colour, height=0.66, label=part, zorder=2)
        lefts = [left + width for left, width in zip(lefts, widths, strict=True)]
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelcolor=LIGHT["ink"])
    axes.grid(visible=False, axis="y")
    label(axes, "milliseconds of a step", "")
    legend(axes, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(_PARTS))
    return figure


class _Bar(NamedTuple):
    """A bar of `time_by_layer`."""

    name: str  # the layer's number, or what has no layer
    milliseconds: float
    part: str


def time_by_layer(breakdown: StepBreakdown) -> Figure:
    """Draw a step's milliseconds by layer, in the graph's order."""
    figure, axes = new_figure(NARROW, 3.4)
    bars = _bars_by_layer(breakdown)
    for part in _GRAPH_PARTS:
        places = [place for place, bar in enumerate(bars) if bar.part == part]
        heights = [bars[place].milliseconds for place in places]
        axes.bar(places, heights, color=_PARTS[part][1], label=part, zorder=2)
    num_layers = sum(bar.name.isdecimal() for bar in bars)
    ticks = _layer_ticks(bars, every=max(1, num_layers // 12))
    axes.set_xticks(ticks, [bars[place].name for place in ticks])
    for tick, place in zip(axes.get_xticklabels(), ticks, strict=True):
        tick.set_rotation(0 if bars[place].name.isdecimal() else 90)
    axes.grid(visible=False, axis="x")
    label(axes, "layer", "milliseconds of a step")
    legend(axes, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    return figure


def _bars_by_layer(breakdown: StepBreakdown) -> list[_Bar]:
    """Return a bar for each layer, and after those of a part one for the rest of the part."""
    bars = []
    for part in _GRAPH_PARTS:
        rest = 0.0
        for row in breakdown.layers:
            if row.part != part:
                continue
            number = row.layer.rpartition(".")[2]
            if number.isdecimal():
                bars.append(_Bar(number, 1000 * row.seconds, part))
            else:
                rest += row.seconds
        if rest:
            bars.append(_Bar(_WITHOUT_LAYER[part], 1000 * rest, part))
    return bars


def _layer_ticks(bars: Sequence[_Bar], *, every: int) -> list[int]:
    """Return the places of the labelled bars: of the target's layers only some."""
    ticks = []
    for place, bar in enumerate(bars):
        is_target_layer = bar.part != "draft" and bar.name.isdecimal()
        if not is_target_layer or int(bar.name) % every == 0:
            ticks.append(place)
    return ticks


def step_yields(results: Sequence[SystemResult], colours: Mapping[str, str]) -> Figure:
    """Draw the histogram of acceptance lengths: the share of steps that yielded 1, 2, … tokens."""
    figure, axes = new_figure(NARROW, 3.2)
    longest = max(len(result.acceptance.histogram) for result in results)
    width = 0.8 / len(results)
    for index, result in enumerate(results):
        counts = result.acceptance.histogram[1:]
        steps = max(1, result.acceptance.steps)
        shift = (index - (len(results) - 1) / 2) * width
        axes.bar(
            [tokens + shift for tokens in range(1, len(counts) + 1)],
            [count / steps for count in counts],
            width=width * 0.9,
            color=colours[result.system],
            label=result.system,
            zorder=2,
        )
    axes.set_xticks(range(1, longest))
    axes.grid(visible=False, axis="x")
    label(axes, "tokens of a step", "share of steps")
    legend(axes, loc="upper right")
    return figure
