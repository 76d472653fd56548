"""The text of one answer as its tokens come, up to its first stop word."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from trtllm_dflash.runtime.text.detokenizer import IncrementalDetokenizer


class StopWordFilter:
    """Text as tokens come, up to the first stop word.

    Text that may be the beginning of a stop word is held back.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], stop_words: Sequence[str] = ()
    ) -> None:
        """Take what turns token ids into text, and stop words, none of which is empty."""
        self._detokenizer = IncrementalDetokenizer(decode)
        self._stop_words = tuple(stop_words)
        self._held = ""  # decoded, not yet returned
        self.stopped = False  # whether a stop word has come

    def push(self, token_ids: Sequence[int]) -> tuple[list[int], str]:
        """Return the tokens up to the end of a stop word, and the text that they complete."""
        if not self._stop_words:
            return list(token_ids), self._detokenizer.push(token_ids)
        text = ""
        used = list[int]()
        for token in token_ids:
            text += self._release(self._detokenizer.push([token]))
            used.append(token)
            if self.stopped:
                break
        return used, text

    def finish(self) -> str:
        """Return what was held back, once no more tokens follow; nothing after a stop word."""
        if self.stopped:
            return ""
        text = self._release(self._detokenizer.finish())
        if not self.stopped:
            text += self._held
        return text

    def _release(self, fresh: str) -> str:
        self._held += fresh
        places = [place for word in self._stop_words if (place := self._held.find(word)) >= 0]
        if places:
            self.stopped = True
            return self._held[: min(places)]
        text = self._held[: len(self._held) - self._partial_length()]
        self._held = self._held[len(text) :]
        return text

    def _partial_length(self) -> int:
        """Return how many of the last characters may be the beginning of a stop word."""
        longest_word = max(map(len, self._stop_words), default=1)
        for length in range(min(len(self._held), longest_word - 1), 0, -1):
            end = self._held[-length:]
            if any(word.startswith(end) for word in self._stop_words):
                return length
        return 0
