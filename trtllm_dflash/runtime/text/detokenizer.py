"""Text from tokens that come one after the other."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # decoders write it for bytes that are no character
Decode = Callable[[Sequence[int]], str]

# A character has at most four bytes, so the first three may still become one.
_MAX_HALF_CHARACTER = 3
# A window is cut when it has more tokens than this, so that few steps pay for cutting.
_MAX_WINDOW = 24
# The tokens that stay: enough to hold a half character, and something shown before it.
_MIN_WINDOW = 6


class IncrementalDetokenizer:
    """Turns tokens as they come into text that never ends inside a character.

    Each push decodes once: a short window of the last tokens. A token's text can depend on those
    just before it (a leading space, the bytes of one character), but not on earlier ones.
    """

    def __init__(self, decode: Decode) -> None:
        """Take the function that turns token ids into text."""
        self.decode = decode
        self._window: list[int] = []
        self._text = ""  # of the window
        self._num_shown = 0  # characters of the window's text that were returned

    def copy(self) -> IncrementalDetokenizer:
        """Return one that goes on from here by itself."""
        twin = copy.copy(self)
        twin._window = list(self._window)
        return twin

    def push(self, token_ids: Sequence[int]) -> str:
        """Return the text that these tokens complete."""
        if not token_ids:
            return ""
        if len(self._window) > _MAX_WINDOW:
            self._cut()
        self._window += token_ids
        self._text = self.decode(self._window)
        return self._show(len(self._text) - _half_character(self._text))

    def finish(self) -> str:
        """Return what was held back as an unfinished character; no tokens may follow."""
        return self._show(len(self._text))

    def _show(self, end: int) -> str:
        fresh = self._text[self._num_shown : end]
        self._num_shown = max(self._num_shown, end)
        return fresh

    def _cut(self) -> None:
        """Shorten the window to its last tokens, if they alone have the text that they have here.

        They do not where a character or a word begins before them. Then a few more stay. Something
        shown must be among them: a space at the beginning of a text may show only behind it.
        """
        num_held = len(self._text) - self._num_shown
        for size in range(_MIN_WINDOW, len(self._window)):
            tail = self._window[-size:]
            text = self.decode(tail)
            if len(text) > num_held and self._text.endswith(text):
                self._window = tail
                self._text = text
                self._num_shown = len(text) - num_held
                return
        # Tokens that show nothing: the next one follows what is before them.
        first, last = self._window[:_MIN_WINDOW], self._window[-_MIN_WINDOW:]
        self._window = first if self.decode(first) == self._text else last
        self._text = self.decode(self._window)
        self._num_shown = max(0, len(self._text) - num_held)


def _half_character(text: str) -> int:
    """Return how many of the last characters may be a part of one."""
    tail = text[-_MAX_HALF_CHARACTER:]
    return len(tail) - len(tail.rstrip(REPLACEMENT))
