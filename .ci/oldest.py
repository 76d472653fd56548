"""Print the oldest versions that pyproject.toml allows, as constraints of pip.

Whoever raises the use of a package beyond its bound finds out by `make test-oldest`.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
_BOUND = re.compile(r"([\w-]+)(?:\[\w+\])?>=([\d.]+)")


def oldest(requirements: list[str]) -> list[str]:
    """Return `name==version` of each requirement that has a lower bound."""
    found = filter(None, map(_BOUND.match, requirements))
    return [f"{match[1]}=={match[2]}" for match in found]


if __name__ == "__main__":
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    sys.stdout.write("\n".join(oldest(project["dependencies"])) + "\n")
