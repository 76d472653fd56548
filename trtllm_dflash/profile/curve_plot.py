"""The plot of throughput against interactivity, for profiles and estimates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trtllm_dflash.profile.curve import Curve
from trtllm_dflash.profile.result import PLAIN
from trtllm_dflash.profile.theme import LIGHT, SERIES, WIDE, annotate, label, legend, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
