"""The plot of an estimate's curves."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from trtllm_dflash.atomic.whole_file import write_whole
from trtllm_dflash.errors import UsageError
from trtllm_dflash.profile.curve import Curve
from trtllm_dflash.profile.curve_plot import throughput_against_interactivity
from trtllm_dflash.profile.theme import require_matplotlib


def check_format(path: Path) -> None:
    """Raise UsageError without matplotlib, or if it writes no files that end as `path` does."""
    require_matplotlib()
    from matplotlib.backend_bases import FigureCanvasBase

    endings = sorted(FigureCanvasBase.get_supported_filetypes())
    if path.suffix.lower().removeprefix(".") not in endings:
        raise UsageError(
            f"--plot {path}: a plot's name ends with one of .{', .'.join(endings)}"
        )


def draw_curves(curves: Sequence[Curve], path: Path, *, title: str) -> None:
    """Write a plot of throughput against interactivity, every point with its batch size.

    Raises:
        UsageError: without matplotlib, or for a file that cannot be written.
    """
    title = f"{title}\nestimated; numbers are batch sizes"
    figure = throughput_against_interactivity(curves, title=title, log=True)
    import matplotlib as mpl

    # No date and no random ids inside: the same estimate is the same file.
    metadata = {"Date": None} if path.suffix == ".svg" else None
    drawn = io.BytesIO()
    try:
        with mpl.rc_context({"svg.hashsalt": "dflash-trt"}):
            ending = path.suffix.lower().removeprefix(".")
            figure.savefig(drawn, format=ending, dpi=130, facecolor="white", metadata=metadata)
        write_whole(path, drawn.getvalue())
    except (OSError, ValueError) as error:
        raise UsageError(f"--plot {path}: {error}") from error
