"""How systems are told apart in plots: by colour, and without it by marker, dashes and hatch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trtllm_dflash.profile.result import PLAIN
from trtllm_dflash.profile.theme import LIGHT, SERIES

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "<", "h", "*")
_SOLID: tuple[Any, ...] = (0, ())
_DASHES: tuple[tuple[Any, ...], ...] = (
    _SOLID,
    (0, (5, 2)),
    (0, (1, 1.5)),
    (0, (6, 2, 1, 2)),
    (0, (9, 3)),
    (0, (3, 1.5, 1, 1.5, 1, 1.5)),
)
_HATCHES = ("", "///", "...", "\\\\\\", "xxx", "---", "ooo", "+++", "|||", "**")
_LARGEST, _SMALLEST = 12.0, 6.0  # points: markers at one place lie within each other


@dataclass(frozen=True)
class Look:
    """The look of one system in every plot."""

    colour: str
    marker: str
    dashes: tuple[Any, ...]
    hatch: str
    size: float

    def line(self) -> dict[str, Any]:
        """Return the options of a line with hollow markers, which show those behind them."""
        return {
            "color": self.colour,
            "linestyle": self.dashes,
            "linewidth": 1.8,
            **self.points(),
        }

    def points(self) -> dict[str, Any]:
        """Return the options of hollow markers."""
        return {
            "color": self.colour,
            "marker": self.marker,
            "markersize": self.size,
            "markerfacecolor": "none",
            "markeredgecolor": self.colour,
            "markeredgewidth": 1.5,
        }

    def bar(self) -> dict[str, Any]:
        """Return the options of bars; the hatch is in the colour of the page."""
        return {
            "color": self.colour,
            "hatch": self.hatch,
            "edgecolor": LIGHT["surface"],
            "linewidth": 0,
        }


def looks_by_name(names: Sequence[str]) -> dict[str, Look]:
    """Return grey for "plain", and a look of its own for each of the others, in turn.

    The looks of ten others differ in colour, and those of many more in marker and dashes.
    """
    others = [name for name in dict.fromkeys(names) if name != PLAIN]
    looks = {PLAIN: _look(0, len(others) + 1)}
    for index, name in enumerate(others, start=1):
        looks[name] = _look(index, len(others) + 1)
    return looks


def _look(index: int, count: int) -> Look:
    """Return look number `index` of `count`; number 0 is that of "plain"."""
    step = (_LARGEST - _SMALLEST) / max(1, count - 1)
    return Look(
        LIGHT["plain"] if index == 0 else SERIES[(index - 1) % len(SERIES)],
        _MARKERS[index % len(_MARKERS)],
        _DASHES[index % len(_DASHES)],
        _HATCHES[index % len(_HATCHES)],
        _LARGEST - step * index,
    )
