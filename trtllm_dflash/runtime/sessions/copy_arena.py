"""Room for copies of different sizes within one piece of memory."""

from __future__ import annotations

from bisect import insort

_ALIGNMENT = 256  # bytes, as memory of its own would have


class CopyArena:
    """Deals out ranges of `nbytes` of memory, the first that is large enough."""

    def __init__(self, nbytes: int) -> None:
        """Begin with all of it free."""
        self._free = [(0, nbytes)] if nbytes else []  # (offset, bytes), in order of offsets

    def take(self, nbytes: int) -> int | None:
        """Return the offset of a range, None if no free one is large enough."""
        needed = _rounded(nbytes)
        for index, (offset, size) in enumerate(self._free):
            if size < needed:
                continue
            rest = [(offset + needed, size - needed)] if size > needed else []
            self._free[index : index + 1] = rest
            return offset
        return None

    def give_back(self, offset: int, nbytes: int) -> None:
        """Free a range, and join it with its free neighbours."""
        insort(self._free, (offset, _rounded(nbytes)))
        joined: list[tuple[int, int]] = []
        for begin, size in self._free:
            if joined and sum(joined[-1]) == begin:
                joined[-1] = (joined[-1][0], joined[-1][1] + size)
            else:
                joined.append((begin, size))
        self._free = joined


def _rounded(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT
