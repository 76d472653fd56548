"""Colours of plots and pages by role, for light and dark themes, and figures as SVG.

Figures are drawn in the light colours. In the SVG every colour becomes a CSS variable, so that one
drawing serves both themes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtllm_dflash.environment import matplotlib_without_traces
from trtllm_dflash.errors import UsageError, install_command

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Colours are unique within a theme because the SVG is themed by replacing them.
LIGHT: Mapping[str, str] = {
    "surface": "#ffffff",
    "ink": "#1d2433",
    "muted": "#667085",
    "grid": "#e4e7ec",
    "plain": "#8d95a5",
    "series1": "#2f6fed",
    "series2": "#0c9a83",
    "series3": "#d9650f",
    "series4": "#8a4fd8",
    "series5": "#d13b7f",
    "series6": "#b08900",
    "series7": "#c42b2b",
    "series8": "#7a5230",
    "series9": "#4d7c0f",
    "series10": "#0e7ca8",
}
DARK: Mapping[str, str] = {
    "surface": "#12161f",
    "ink": "#e6e9f0",
    "muted": "#98a2b3",
    "grid": "#2a3140",
    "plain": "#7f8aa0",
    "series1": "#74a5ff",
    "series2": "#3fcdb4",
    "series3": "#ff9d57",
    "series4": "#b992ff",
    "series5": "#ff85b8",
    "series6": "#e3be45",
    "series7": "#ff7b72",
    "series8": "#c99b6d",
    "series9": "#a5d14e",
    "series10": "#58c7ef",
}
SERIES = tuple(LIGHT[name] for name in LIGHT if name.startswith("series"))
WIDE = 9.6
NARROW = 5.6  # inches: a figure alone in its row, or beside another
FONTS = 'system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif'


def require_matplotlib() -> None:
    """Raise UsageError where matplotlib is not installed."""
    try:
        with matplotlib_without_traces():
            import matplotlib.font_manager as _  # noqa: F401 - it looks for fonts here
    except ImportError as error:
        raise UsageError(
            f"plots need matplotlib ({error}): {install_command('profile')}"
        ) from error


def new_figure(width: float, height: float) -> tuple[Figure, Any]:
    """Return an empty figure of this size in inches, and its axes.

    Raises:
        UsageError: without matplotlib.
    """
    require_matplotlib()
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(
        {"axes.spines.top": False, "axes.spines.right": False, "font.size": 10}
    ):
        figure = Figure(figsize=(width, height), layout="constrained", facecolor="none")
        axes = figure.add_subplot()
    axes.set_facecolor("none")
    axes.set_axisbelow(True)
    axes.grid(visible=True, color=LIGHT["grid"], linewidth=0.8)
    axes.tick_params(colors=LIGHT["muted"], length=0, labelsize=9)
    for spine in axes.spines.values():
        spine.set_color(LIGHT["grid"])
    return figure, axes


def legend(axes: Any, **options: Any) -> None:
    """Add a legend without a frame."""
    axes.legend(frameon=False, labelcolor=LIGHT["ink"], fontsize=9, **options)


def label(axes: Any, x: str, y: str) -> None:
    """Set the labels of the axes."""
    axes.set_xlabel(x, color=LIGHT["muted"], fontsize=9)
    axes.set_ylabel(y, color=LIGHT["muted"], fontsize=9)


def annotate(axes: Any, text: str, place: tuple[float, float], **options: Any) -> None:
    """Write a short text up and to the right of a point."""
    options = {"xytext": (6, 4), "color": LIGHT["ink"], "fontsize": 8} | options
    axes.annotate(text, place, textcoords="offset points", **options)


def inline_svg(figure: Figure, description: str) -> str:
    """Return the figure as an element of an HTML page that contains `css_variables()`.

    `description` is the text for screen readers, escaped for an attribute.
    """
    svg = _svg(figure)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{description}" ', 1)


def save(figure: Figure, path: Path) -> None:
    """Write .svg, which follows the reader's light or dark theme, or .png, which is light."""
    if path.suffix == ".png":
        figure.savefig(path, dpi=200, facecolor=LIGHT["surface"])
        return
    if path.suffix != ".svg":
        raise UsageError(f"{path}: a plot is written as .svg or .png")
    style = f"<style>{css_variables('svg')} svg {{ background: var(--surface) }}</style>"
    svg = _svg(figure)
    start = svg.index(">", svg.index("<svg")) + 1
    path.write_text(svg[:start] + style + svg[start:], encoding="utf-8")


def css_variables(selector: str = ":root") -> str:
    """Return CSS that sets every colour by its role for the reader's theme."""
    light = _declarations(LIGHT)
    dark = _declarations(DARK)
    dark_rule = f"@media (prefers-color-scheme: dark) {{ {selector} {{ {dark} }} }}"
    return f"{selector} {{ {light} }} {dark_rule}"


def _declarations(theme: Mapping[str, str]) -> str:
    return " ".join(f"--{role}: {colour};" for role, colour in theme.items())


def _svg(figure: Figure) -> str:
    """Return the svg element with variables for colours and the page's fonts.

    The same figure gives the same text.
    """
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "dflash-trt"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, facecolor="none")
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    roles = {colour: role for role, colour in LIGHT.items()}

    def variable(found: re.Match[str]) -> str:
        colour = found[0]
        return f"var(--{roles[colour]})" if colour in roles else colour

    svg = re.sub(r"#[0-9a-f]{6}\b", variable, svg)
    fonts = FONTS.replace('"', "'")
    return re.sub(r"font: ([0-9.]+px) [^;\"]*", rf"font: \1 {fonts}", svg)
