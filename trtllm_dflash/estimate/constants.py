"""The values that every estimate assumes, read from constants.toml."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_DATA: Mapping[str, Any] = tomllib.loads(
    Path(__file__).with_name("constants.toml").read_text(encoding="utf-8")
)


@dataclass(frozen=True)
class Constants:
    """Seconds, and fractions of a datasheet's figure."""

    bandwidth_fraction: float
    compute_fraction: float
    kernel: float
    sum_latency: float
    link_fraction: float

    def rows(self) -> list[tuple[str, str, str]]:
        """Return value, meaning and reason of each constant, for people."""
        rows = []
        for name, value in vars(self).items():
            shown = f"{value * 1e6:g} µs" if "unit" in _DATA[name] else f"{value:g}"
            rows.append((shown, _DATA[name]["meaning"], _DATA[name]["reason"]))
        return rows


CONSTANTS = Constants(**{name: _DATA[name]["value"] for name in Constants.__annotations__})


@dataclass(frozen=True)
class Runtime:
    """The seconds that a step waits for the host, by the software that runs it.

    `launch` is the host's time for a launch where there is no CUDA graph. `unfused`: launches for
    each one that is counted. If `captured`, a step is a CUDA graph; a prompt is one only where
    `launch` is 0.
    """

    name: str
    meaning: str
    reason: str
    plain_host: float = 0.0
    draft_host: float = 0.0
    draft_host_per_sequence: float = 0.0
    launch: float = 0.0
    unfused: float = 1.0
    captured: bool = True


RUNTIMES = {name: Runtime(name, **values) for name, values in _DATA["runtimes"].items()}
ENGINE, SERVING = RUNTIMES["engine"], RUNTIMES["serving"]
LINK_GBS: Mapping[str, float] = _DATA["link_gbs"]
