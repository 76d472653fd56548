"""The plot of throughput against interactivity, for profiles and estimates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trtllm_dflash.profile.curve import Curve
from trtllm_dflash.profile.looks import looks_by_name
from trtllm_dflash.profile.theme import LIGHT, WIDE, annotate, label, legend, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Where batch sizes are written, in points from theirs: those of several curves keep apart.
_OFFSETS = ((8, 5), (8, -11), (-13, 5), (-13, -11), (-3, 10), (-3, -16))
_MAX_IN_ONE_COLUMN = 6


def throughput_against_interactivity(
    curves: Sequence[Curve], *, device: str = "GPU", title: str | None = None, log: bool = False
) -> Figure:
    """Draw every curve with its batch sizes; up and to the right is better.

    `log` is for throughputs that span several orders of magnitude. Markers are hollow and of
    different sizes, so that points at one place are all seen. The legend says which curves are
    estimated.
    """
    figure, axes = new_figure(WIDE, 4.8)
    looks = looks_by_name([curve.name for curve in curves])
    for index, curve in enumerate(curves):
        look = looks[curve.name]
        x = [point.tokens_per_second_per_user for point in curve.points]
        y = [point.tokens_per_second_per_gpu for point in curve.points]
        name = f"{curve.name} (estimated)" if curve.estimated else curve.name
        axes.plot(x, y, label=name, zorder=3 + index, **look.line())
        offset = _OFFSETS[index % len(_OFFSETS)]
        for point, place in zip(curve.points, zip(x, y, strict=True), strict=True):
            annotate(axes, str(point.batch), place, color=look.colour, xytext=offset)
    axes.set_xlim(left=0)
    if log:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.margins(0.06)
    label(axes, "tokens/s per user (interactivity)", f"tokens/s per {device} (throughput)")
    columns = 1 if len(curves) <= _MAX_IN_ONE_COLUMN else 2
    legend(axes, loc="best", ncols=columns, handlelength=4)
    if title:
        axes.set_title(title, color=LIGHT["ink"], fontsize=11, loc="left")
    return figure
