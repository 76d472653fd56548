"""Triton's model control mode, as a model finds it out: nothing tells it."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

_MAX_ANCESTORS = 4


def unloads_on_demand(process: int) -> bool:
    """Return whether the server above a model's process has the explicit model control mode.

    `process` is the nearest one above. A shell may stand between the two.
    """
    for _ in range(_MAX_ANCESTORS):
        try:
            words = _proc_file(process, "cmdline").split("\0")
            parent = re.search(r"^PPid:\s*(\d+)", _proc_file(process, "status"), re.MULTILINE)
        except OSError:
            return False
        option = "--model-control-mode"
        if f"{option}=explicit" in words or (option, "explicit") in pairwise(words):
            return True
        process = int(parent[1]) if parent else 0
    return False


def _proc_file(process: int, name: str) -> str:
    return Path(f"/proc/{process}/{name}").read_bytes().decode(errors="replace")
