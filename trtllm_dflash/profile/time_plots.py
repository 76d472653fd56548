"""Plots of where a step's time goes: by part, and by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from trtllm_dflash.profile.result import StepBreakdown
from trtllm_dflash.profile.theme import LIGHT, NARROW, SERIES, label, legend, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Part of a step -> field of StepBreakdown, colour, hatch.
_PARTS = {
    "verify": ("verify_seconds", SERIES[0], ""),
    "draft": ("draft_seconds", SERIES[1], "///"),
    "accept": ("accept_seconds", SERIES[2], "..."),
    "host": ("host_seconds", LIGHT["plain"], "xxx"),
}
_GRAPH_PARTS = ("verify", "accept", "draft")  # in the graph's order
_WITHOUT_LAYER = {"verify": "head", "accept": "accept", "draft": "fc, head"}


def where_time_goes(breakdowns: Sequence[StepBreakdown]) -> Figure:
    """Draw a bar for each system and batch size: a step's milliseconds by part."""
    figure, axes = new_figure(NARROW, 0.9 + 0.34 * len(breakdowns))
    names = [f"{one.system}, batch {one.batch}" for one in breakdowns]
    lefts = [0.0] * len(breakdowns)
    for part, (field, colour, hatch) in _PARTS.items():
        seconds = [getattr(one, field) or 0.0 for one in breakdowns]
        widths = [1000 * value for value in seconds]
        if any(widths):
            style = {"color": colour, "hatch": hatch, "edgecolor": LIGHT["surface"]}
            bars = {"left": lefts, "height": 0.66, "linewidth": 0, "label": part, **style}
            axes.barh(names, widths, zorder=2, **bars)
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

    @property
    def is_layer(self) -> bool:
        """Return whether the bar is a numbered layer."""
        return self.name.isdecimal()


def time_by_layer(breakdown: StepBreakdown) -> Figure:
    """Draw a step's milliseconds by layer, in the graph's order."""
    figure, axes = new_figure(NARROW, 3.4)
    bars = _bars_by_layer(breakdown)
    for part in _GRAPH_PARTS:
        places = [place for place, bar in enumerate(bars) if bar.part == part]
        heights = [bars[place].milliseconds for place in places]
        _, colour, hatch = _PARTS[part]
        style = {"color": colour, "hatch": hatch, "edgecolor": LIGHT["surface"]}
        axes.bar(places, heights, label=part, linewidth=0, zorder=2, **style)
    num_layers = sum(bar.is_layer for bar in bars)
    ticks = _layer_ticks(bars, every=max(1, num_layers // 12))
    axes.set_xticks(ticks, [bars[place].name for place in ticks])
    for tick, place in zip(axes.get_xticklabels(), ticks, strict=True):
        if not bars[place].is_layer:
            tick.set_rotation(90)
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
        is_target_layer = bar.is_layer and bar.part != "draft"
        if not is_target_layer or int(bar.name) % every == 0:
            ticks.append(place)
    return ticks
