"""Plots of estimates, with matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from trtllm_dflash.errors import UsageError
from trtllm_dflash.estimate import fifteen
from trtllm_dflash.estimate.fifteen import Comparison
from trtllm_dflash.profile.curve import Curve
from trtllm_dflash.profile.theme import require_matplotlib

_COLOURS = {"plain": "#6b7280", "DFlash": "#76b900", "EAGLE-3": "#d97706"}
_USER, _GPU = "tokens/s a user (interactivity)", "tokens/s a GPU"
_LINES = ("-", "--")
_RATIO_AXIS, _RATIO_TICKS = (0.6, 100), (1, 2, 5, 10, 15, 30, 60)


def check_kind(path: Path) -> None:
    """Raise UsageError without matplotlib, or if it writes no files that end as `path` does."""
    require_matplotlib()
    from matplotlib.backend_bases import FigureCanvasBase

    kinds = sorted(FigureCanvasBase.get_supported_filetypes())
    if path.suffix.lower().removeprefix(".") not in kinds:
        raise UsageError(f"--plot {path}: a plot's name ends with one of .{', .'.join(kinds)}")


def draw_curves(curves: Sequence[Curve], path: Path, *, title: str) -> None:
    """Throughput against interactivity, every point with its batch size.

    Raises:
        UsageError: without matplotlib, or for a kind of file that it does not write.
    """
    plt = _matplotlib()
    figure, axes = plt.subplots(figsize=(7.5, 5), layout="constrained")
    for curve in curves:
        users = [point.tokens_per_second_per_user for point in curve.points]
        rates = [point.tokens_per_second_per_gpu for point in curve.points]
        axes.plot(
            users, rates, "o-", color=_COLOURS.get(curve.name), label=curve.name, markersize=4
        )
        for point, user, rate in zip(curve.points, users, rates, strict=True):
            axes.annotate(
                f"{point.batch}", (user, rate), (4, 4), textcoords="offset points", fontsize=8
            )
    axes.set(
        title=f"{title}\nestimated; numbers are batch sizes",
        xlabel=_USER,
        ylabel=_GPU,
        yscale="log",
    )
    _finish(plt, figure, axes, path)


def draw_fifteen(found: Sequence[Comparison], path: Path) -> None:
    """Both frontiers of gpt-oss-120b on eight B300, and their ratio; see `draw_curves`."""
    plt = _matplotlib()
    figure, (curves, ratios) = plt.subplots(1, 2, figsize=(12, 5.2), layout="constrained")
    for comparison, line in zip(found, _LINES, strict=False):
        for name, points in (("plain", comparison.plain), ("DFlash", comparison.dflash)):
            users = [point.tokens_per_second_per_user for point in points]
            rates = [point.tokens_per_second_per_gpu for point in points]
            label = f"{name}, {comparison.case.name}"
            curves.plot(
                users, rates, line, marker="o", markersize=3, color=_COLOURS[name], label=label
            )
        where, values = zip(*comparison.ratios(), strict=True)
        ratios.plot(where, values, line, color="#1f2937", label=comparison.case.name)
        _mark(ratios, comparison)
    ratios.axhline(fifteen.CLAIM, color="#b91c1c", linewidth=1)
    ratios.axhline(1, color="#9ca3af", linewidth=0.8)
    for axes in (curves, ratios):
        axes.axvspan(
            *fifteen.BAND, color="#fde68a", alpha=0.5, label="NVIDIA's 500 to 600 tokens/s a user"
        )
    curves.set(title="throughput against interactivity", xlabel=_USER, ylabel=_GPU, yscale="log")
    ratios.set(
        title="their ratio at equal interactivity",
        xlabel=_USER,
        ylabel="DFlash over plain",
        yscale="log",
    )
    ratios.set_ylim(*_RATIO_AXIS)
    ratios.set_yticks(_RATIO_TICKS, [f"{ratio}x" for ratio in _RATIO_TICKS])
    ratios.minorticks_off()
    ratios.legend(fontsize=8, loc="lower right", bbox_to_anchor=(1, 0.12))
    figure.suptitle(
        f"gpt-oss-120b on {fifteen.GPUS_IN_ALL} x {fifteen.GPU}, estimated: τ {fifteen.TAU} with 9"
        f" drafts, {fifteen.CONTEXT} positions, best split of the GPUs and number of drafts at"
        " every point\n",
        fontsize=11,
    )
    _finish(plt, figure, curves, path)


def _mark(axes: Any, comparison: Comparison) -> None:
    """Where the ratio reaches the claim, and where plain decoding ends."""
    user = comparison.claimed_at()
    if user is not None:
        axes.plot([user], [fifteen.CLAIM], "o", color="#b91c1c", markersize=6)
        axes.annotate(
            f"15x at {user:.0f}",
            (user, fifteen.CLAIM),
            (-8, 6),
            textcoords="offset points",
            ha="right",
            color="#b91c1c",
        )
    end, _ = comparison.ratios()[-1]
    axes.axvline(end, color="#9ca3af", linestyle=":", linewidth=1)
    axes.text(
        end, 3.3, f"plain ends at {end:.0f} ", rotation=90, ha="right", fontsize=8, color="#6b7280"
    )


def _finish(plt: ModuleType, figure: Any, axes: Any, path: Path) -> None:
    axes.legend(fontsize=8)
    for each in figure.axes:
        each.grid(alpha=0.25)
        each.spines[["top", "right"]].set_visible(False)
    try:
        # No date and no random ids inside: the same estimate is the same file.
        figure.savefig(path, dpi=130, metadata={"Date": None} if path.suffix == ".svg" else None)
    except (OSError, ValueError) as error:
        raise UsageError(f"--plot {path}: {error}") from error
    finally:
        plt.close(figure)


def _matplotlib() -> ModuleType:
    require_matplotlib()
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "dflash-trt"
    import matplotlib.pyplot as plt

    return plt
