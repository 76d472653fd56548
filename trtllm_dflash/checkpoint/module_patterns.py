"""Regular expressions over names of modules, as patterns with `*` that take no time to try.

A configuration may ask for any expression, and some take forever to match. The few forms that
published checkpoints have are translated; others are not read.
"""

from __future__ import annotations

import re
from itertools import product

MAX_ALTERNATIVES = 64  # that groups such as (q|k|v) multiply to
# One piece of an expression: any text, any text of one character and more, any character, a
# character itself, and a group of names.
_PIECE = re.compile(
    r"(?P<any>\.\*)|(?P<some>\.\+)|(?P<literal>[\w-]|\\[.\-_]|\[\.\])|(?P<one>\.)"
    r"|\((?:\?:)?(?P<group>[\w|]+)\)"
)


def patterns_of(expression: str) -> list[str] | None:
    """Return the patterns that together cover what an expression matches at a name's start.

    None: it has a form that is not read, or too many alternatives.
    """
    text = expression.removeprefix("^")
    is_whole = text.endswith("$")
    text = text.removesuffix("$")
    pieces: list[list[str]] = []
    position = 0
    while position < len(text):
        match = _PIECE.match(text, position)
        if match is None:
            return None
        pieces.append(_alternatives(match))
        position = match.end()
    count = 1
    for piece in pieces:
        count *= len(piece)
        if count > MAX_ALTERNATIVES:
            return None
    end = "" if is_whole else "*"
    found = {"".join(parts) + end for parts in product(*pieces)}
    return sorted(re.sub(r"\*+", "*", pattern) for pattern in found)


def _alternatives(match: re.Match[str]) -> list[str]:
    if match["group"] is not None:
        return match["group"].split("|")
    if match["literal"] is not None:
        return [match["literal"].strip("[]\\")]
    return [{"any": "*", "some": "?*", "one": "?"}[str(match.lastgroup)]]
