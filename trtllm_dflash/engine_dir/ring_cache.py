"""Ring caches: how few rows a layer with a window needs.

In a ring of R rows position p lives in row p mod R. Writing p therefore destroys p - R, and a row
holds the last position that was written to it. A step that starts at position s and writes
`written` positions destroys those up to s + written - 1 - R. Its first row looks back to
s - window + 1. What it looks at is never destroyed if

    s + written - 1 - R < s - window + 1,  that is  R >= window - 1 + written.

A ring needs no more, however many drafts are accepted:

- The next step starts behind s, so what this step left is enough for it as well. The drafts that it
  rejected were among the positions written. What they destroyed lies before the next window too.
- A rejected row may remain if the next step is narrower. It stands for a position R earlier, which
  lies before the window, so nothing reads it until it is written.
- The same holds for prefill chunks and for steps of sequences that have already finished.
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


def cache_rows(
    windows: Sequence[int], *, cache_len: int, written: int | None
) -> tuple[int, ...]:
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
