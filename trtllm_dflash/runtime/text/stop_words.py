"""Stop words in the pieces of one answer, special tokens included."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

from trtllm_dflash.runtime.text.pieces import Piece


class StopWordFilter:
    """Passes pieces on, up to where the first stop word begins.

    What may be the beginning of a stop word is held back. A stop word may reach over several
    pieces.
    """

    def __init__(self, stop_words: Sequence[str] = ()) -> None:
        """Take stop words, none of which is empty."""
        self._stop_words = tuple(stop_words)
        self._beginnings = _beginnings(self._stop_words)
        self._longest = max(map(len, self._stop_words), default=1)
        self._held: list[Piece] = []
        self.stopped = False  # whether a stop word has come

    def copy(self) -> StopWordFilter:
        """Return one that goes on from here by itself."""
        twin = copy.copy(self)
        twin._held = list(self._held)
        return twin

    def push(self, pieces: Iterable[Piece], *, may_stop: bool = True) -> list[Piece]:
        """Return the pieces that are certain to come before a stop word.

        Of the stop words that end in these pieces, the one counts that begins first. Without
        `may_stop` none counts.
        """
        if not self._stop_words:
            return list(pieces)
        searched = sum(len(piece.text) for piece in self._held)
        self._held += pieces
        text = "".join(piece.text for piece in self._held)
        places = self._places(text, searched) if may_stop else []
        if places:
            self.stopped = True
            return self._release(min(places))
        return self._release(len(text) - self._partial_length(text))

    def finish(self) -> list[Piece]:
        """Return what was held back, once nothing more follows; nothing after a stop word."""
        held, self._held = self._held, []
        return [] if self.stopped else held

    def _places(self, text: str, searched: int) -> list[int]:
        """Return where the stop words begin that end behind the characters searched before."""
        places = []
        for word in self._stop_words:
            place = text.find(word, max(0, searched - len(word) + 1))
            if place >= 0:
                places.append(place)
        return places

    def _partial_length(self, text: str) -> int:
        """Return how many of the last characters may be the beginning of a stop word."""
        for length in range(min(len(text), self._longest - 1), 0, -1):
            if text[-length:] in self._beginnings:
                return length
        return 0

    def _release(self, count: int) -> list[Piece]:
        """Return the first `count` characters of what is held, as pieces."""
        released = []
        while self._held and count > 0:
            piece = self._held.pop(0)
            if len(piece.text) > count:
                self._held.insert(0, piece._replace(text=piece.text[count:]))
                piece = piece._replace(text=piece.text[:count])
            count -= len(piece.text)
            released.append(piece)
        return released


def _beginnings(words: Sequence[str]) -> frozenset[str]:
    """Return every text that another character or more makes a stop word."""
    found = set()
    for word in words:
        found |= {word[:length] for length in range(1, len(word))}
    return frozenset(found)
