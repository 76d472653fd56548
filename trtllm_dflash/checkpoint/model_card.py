"""What a checkpoint's README.md, its model card, states of its licence."""

from __future__ import annotations

import re
from pathlib import Path

_CARD = "README.md"
_MAX_BYTES = 1 << 16
# The card's head is YAML between lines of three dashes; a name of several words may be quoted.
_HEAD = re.compile(r"\A---\s*\n(.*?)\n---\s*$", re.DOTALL | re.MULTILINE)
_KEY = r"^{}:[ \t]*[\"']?([\w.+() -]{{1,64}}?)[\"']?[ \t]*$"


def stated_licence(directory: Path) -> str | None:
    """Return the licence in the head of a directory's model card, None where none is stated.

    Of "other" the name beside it counts. The card is foreign text: its first 64 KiB are read.
    """
    try:
        with (directory / _CARD).open("rb") as file:
            text = file.read(_MAX_BYTES).decode("utf-8", errors="replace")
    except OSError:
        return None
    head = _HEAD.match(text.replace("\r\n", "\n"))
    if head is None:
        return None
    licence = _value("license", head[1])
    if licence == "other":
        return _value("license_name", head[1]) or licence
    return licence


def _value(key: str, head: str) -> str | None:
    found = re.search(_KEY.format(key), head, re.MULTILINE | re.ASCII)
    return found[1] if found else None
