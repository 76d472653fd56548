"""Text from tokens that come one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # decoders write it for bytes that are no character


class IncrementalDetokenizer:
    """Turns tokens as they come into text that never ends inside a character.

    Only a short window is decoded each time. A token's text can depend on those just before it (a
    leading space, the bytes of one character), but not on earlier ones. A window begins where a
    character does.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        """Take the function that turns token ids into text."""
        self._decode = decode
        self._window: list[int] = []
        self._num_settled = 0  # leading tokens of the window that make whole characters
        self._num_shown = 0  # characters of the window's text that were returned

    def push(self, token_ids: Sequence[int]) -> str:
        """Return the text that these tokens complete."""
        self._window += token_ids
        text = self._decode(self._window)
        whole = text.rstrip(REPLACEMENT)
        fresh = whole[self._num_shown :]
        self._num_shown = max(self._num_shown, len(whole))
        if whole == text:
            self._settle()
        return fresh

    def finish(self) -> str:
        """Return what was held back as an unfinished character; no tokens may follow."""
        return self._decode(self._window)[self._num_shown :]

    def _settle(self) -> None:
        """Shorten the window to its last tokens that show something."""
        tail = self._window[self._num_settled :]
        shown = len(self._decode(tail))
        # A space at the beginning of a text may show only behind another one.
        if shown or self._decode(tail + tail):
            self._window = tail
            self._num_shown = shown
        else:  # special tokens: nothing shows them, and the next token may need the one before
            del self._window[self._num_settled :]
        self._num_settled = len(self._window)
