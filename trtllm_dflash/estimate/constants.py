"""The values that every estimate assumes, read from constants.toml."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FILE = Path(__file__).with_name("constants.toml")
DATA: Mapping[str, Any] = tomllib.loads(_FILE.read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Constants:
    """Seconds, and fractions of a datasheet's figure."""

    bandwidth_fraction: float
    compute_fraction: float
    kernel: float
    sum_latency: float
    link_fraction: float


@dataclass(frozen=True)
class Runtime:
    """The seconds that a step waits for the host, by the software that runs it."""

    name: str
    meaning: str
    reason: str
    plain_host: float = 0.0
    draft_host: float = 0.0


CONSTANTS = Constants(**{name: each["value"] for name, each in DATA["constants"].items()})
RUNTIMES = {name: Runtime(name, **values) for name, values in DATA["runtimes"].items()}
LINK_GBS: Mapping[str, float] = DATA["link_gbs"]
