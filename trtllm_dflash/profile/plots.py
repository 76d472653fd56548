"""The plots of profiles and estimates: one function for each, from results to a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trtllm_dflash.profile.curve import Curve
from trtllm_dflash.profile.result import StepBreakdown, SystemResult
from trtllm_dflash.profile.theme import LIGHT, SERIES, label, legend, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDE, NARROW = 9.6, 5.6  # inches: alone in its row, or beside another
_PARTS = {
    "verify": ("verify_seconds", SERIES[0]),
    "draft": ("draft_seconds", SERIES[1]),
    "accept": ("accept_seconds", SERIES[2]),
    "host": ("host_seconds", LIGHT["plain"]),
}


def throughput_against_interactivity(
    curves: Sequence[Curve], *, device: str = "GPU", title: str | None = None, log: bool = False
) -> Figure:
    """Every curve with its batch sizes; curves without drafts are grey, estimated ones dashed. Up
    and right is better.

    `log`: a logarithmic scale for the throughput, for curves that span several orders of magnitude.
    """
    figure, axes = new_figure(WIDE, 4.8)
    colours = colours_by_name([curve.name for curve in curves])
    for curve in curves:
        colour = colours[curve.name]
        x = [point.tokens_per_second_per_user for point in curve.points]
        y = [point.tokens_per_second_per_gpu for point in curve.points]
        dashes = "--" if curve.estimated else "-"
        axes.plot(
            x, y, dashes, color=colour, linewidth=2, marker="o", markersize=6, label=curve.name
        )
        for point in curve.points:
            place = (point.tokens_per_second_per_user, point.tokens_per_second_per_gpu)
            axes.annotate(
                str(point.batch),
                place,
                xytext=(6, 4),
                textcoords="offset points",
                color=colour,
                fontsize=8,
            )
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
    """Grey for "plain", the series' colours for the others in turn."""
    others = [name for name in dict.fromkeys(names) if name != "plain"]
    return {"plain": LIGHT["plain"]} | {
        name: SERIES[place % len(SERIES)] for place, name in enumerate(others)
    }


def acceptance_length_by_category(
    results: Sequence[SystemResult], colours: Mapping[str, str]
) -> Figure:
    """A row for each kind of prompt, a dot for each side at its τ, later systems in smaller ones;
    sorted by the first side's.
    """
    kinds = sorted(results[0].by_category, key=lambda kind: kind.acceptance.acceptance_length)
    order = {kind.category: place for place, kind in enumerate(kinds)}
    figure, axes = new_figure(NARROW, 0.9 + 0.3 * len(kinds))
    rows: dict[str, list[float]] = {name: [] for name in order}
    for index, result in enumerate(results):
        colour, size = colours[result.system], max(4, 10 - 2.5 * index)
        places = [order[kind.category] for kind in result.by_category]
        values = [kind.acceptance.acceptance_length for kind in result.by_category]
        for row in result.by_category:
            rows[row.category].append(row.acceptance.acceptance_length)
        axes.plot(
            values,
            places,
            "o",
            color=colour,
            markersize=size,
            label=result.system,
            zorder=3 + index,
        )
        axes.axvline(
            result.acceptance.acceptance_length, color=colour, linewidth=1, linestyle=":", zorder=1
        )
    for name, place in order.items():
        axes.plot([1, max(rows[name])], [place, place], color=LIGHT["grid"], linewidth=3, zorder=2)
    axes.set_yticks(list(order.values()), list(order), color=LIGHT["ink"])
    axes.grid(visible=False, axis="y")
    axes.set_xlim(left=0.93)
    label(axes, "τ: tokens a step, bonus included (dotted: all prompts)", "")
    legend(axes, loc="lower right")
    return figure


def acceptance_by_position(result: SystemResult, colours: Mapping[str, str]) -> Figure:
    """How often each draft of the block was accepted: all prompts, and the range over their
    kinds.
    """
    shares = result.acceptance.by_position
    figure, axes = new_figure(NARROW, 3.4)
    places = range(1, len(shares) + 1)
    axes.bar(
        places, shares, color=colours[result.system], width=0.62, label="all prompts", zorder=2
    )
    by_category = [
        kind.acceptance.by_position for kind in result.by_category if kind.acceptance.by_position
    ]
    ranges = [sorted(own[place - 1] for own in by_category) for place in places]
    axes.vlines(
        places,
        [values[0] for values in ranges],
        [values[-1] for values in ranges],
        color=LIGHT["ink"],
        linewidth=1.4,
        label="lowest to highest kind",
        zorder=3,
    )
    for place, share in zip(places, shares, strict=True):
        axes.annotate(
            f"{share:.0%}",
            (place, share),
            xytext=(5, 3),
            textcoords="offset points",
            color=LIGHT["ink"],
            fontsize=9,
        )
    axes.set_xticks(list(places))
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25%", "50%", "75%", "100%"])
    axes.grid(visible=False, axis="x")
    label(axes, "place of the draft in the block", "accepted, of all steps")
    legend(axes, loc="upper right")
    return figure


def where_time_goes(step_breakdowns: Sequence[StepBreakdown]) -> Figure:
    """A bar for each side and batch size: a step's milliseconds by part."""
    figure, axes = new_figure(NARROW, 0.9 + 0.34 * len(step_breakdowns))
    names = [f"{breakdown.system}, batch {breakdown.batch}" for breakdown in step_breakdowns]
    lefts = [0.0] * len(step_breakdowns)
    for part, (field, colour) in _PARTS.items():
        widths = [1000 * (getattr(breakdown, field) or 0.0) for breakdown in step_breakdowns]
        if any(widths):
            axes.barh(names, widths, left=lefts, color=colour, height=0.66, label=part, zorder=2)
        lefts = [left + width for left, width in zip(lefts, widths, strict=True)]
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelcolor=LIGHT["ink"])
    axes.grid(visible=False, axis="y")
    label(axes, "milliseconds of a step", "")
    legend(axes, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(_PARTS))
    return figure


def time_by_layer(breakdown: StepBreakdown) -> Figure:
    """A step's milliseconds by layer, in the graph's order."""
    figure, axes = new_figure(NARROW, 3.4)
    layers = [layer for layer in breakdown.layers if layer.layer.rpartition(".")[2].isdecimal()]
    rest = {
        part: sum(one.seconds for one in breakdown.layers if one.part == part and one not in layers)
        for part in _PARTS
    }
    bars: list[tuple[str, float, str]] = []
    for part in ("verify", "accept", "draft"):
        own = [one for one in layers if one.part == part]
        bars += [(one.layer.rpartition(".")[2], 1000 * one.seconds, part) for one in own]
        name = {"verify": "head", "accept": "accept", "draft": "fc, head"}[part]
        bars += [(name, 1000 * rest[part], part)] if rest[part] else []
    for part in ("verify", "accept", "draft"):
        places = [place for place, bar in enumerate(bars) if bar[2] == part]
        axes.bar(
            places,
            [bars[place][1] for place in places],
            color=_PARTS[part][1],
            label=part,
            zorder=2,
        )
    step = max(1, len(layers) // 12)
    shown = [
        place
        for place, bar in enumerate(bars)
        if bar[2] == "draft" or not bar[0].isdecimal() or int(bar[0]) % step == 0
    ]
    axes.set_xticks(shown, [bars[place][0] for place in shown])
    for tick, place in zip(axes.get_xticklabels(), shown, strict=True):
        tick.set_rotation(0 if bars[place][0].isdecimal() else 90)
    axes.grid(visible=False, axis="x")
    label(axes, "layer", "milliseconds of a step")
    legend(axes, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    return figure


def step_yields(results: Sequence[SystemResult], colours: Mapping[str, str]) -> Figure:
    """The histogram of accepted lengths: the share of steps that yielded 1, 2, … tokens, a group of
    bars for each.
    """
    figure, axes = new_figure(NARROW, 3.2)
    longest = max(len(result.acceptance.histogram) for result in results)
    width = 0.8 / len(results)
    for index, result in enumerate(results):
        counts: list[Any] = result.acceptance.histogram
        shares = [count / max(1, result.acceptance.steps) for count in counts]
        places = [
            place + (index - (len(results) - 1) / 2) * width for place in range(1, len(counts))
        ]
        axes.bar(
            places,
            shares[1:],
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
