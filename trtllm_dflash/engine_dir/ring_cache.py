"""Ring caches: how few rows a layer needs that looks back no further than its window.

In a ring of R rows position p lives in row p mod R, so writing p destroys p - R, and a row holds
the last position that was written to it. A step that starts at position s and writes `written`
positions destroys those up to s + written - 1 - R; its first row looks back to s - window + 1. What
it looks at is never destroyed if

    s + written - 1 - R < s - window + 1,  that is  R >= window - 1 + written.

That is all a ring needs, whatever the drafts come to:

- The next step starts behind s, so what this one left is enough for it as well: drafts that it rejected were among the
  positions written, and what they destroyed lies before the next window too.
- A rejected row that the next step does not write over, because it is narrower, stands in its row for a position R
  earlier, which lies before the window: nobody looks at it until it is written.
- A step in vain, of a sequence that has ended, is a step like any other. So is each chunk of a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

# Rows of a ring come in multiples of this many, so that every slot's caches begin where TensorRT
# takes an address.
ALIGNMENT = 16


def rows_needed(window: int, written: int) -> int:
    """Rows of the smallest ring for a layer that sees `window` positions, where a step writes at
    most `written`.
    """
    return window - 1 + written


def cache_rows(windows: Sequence[int], *, cache_len: int, written: int | None) -> tuple[int, ...]:
    """Rows of each layer's caches: those of its ring if that is smaller than cache_len, else
    cache_len.

    `windows` by layer, 0: none; `written`: the most positions that one step writes; None: no layer
    has a ring.
    """
    return tuple(
        (
            cache_len
            if not window or written is None
            else min(_aligned(rows_needed(window, written)), cache_len)
        )
        for window in windows
    )


def ring_flags(rows: Sequence[int], cache_len: int) -> tuple[int, ...]:
    """Return 1 for each layer whose caches are a ring, else 0; empty if none is."""
    flags = tuple(int(count < cache_len) for count in rows)
    return flags if any(flags) else ()


def _aligned(rows: int) -> int:
    return -(-rows // ALIGNMENT) * ALIGNMENT
