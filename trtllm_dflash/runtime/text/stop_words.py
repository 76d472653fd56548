"""The text of one answer as its tokens come: whole characters, and nothing of a stop word."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from trtllm_dflash.errors import UsageError
from trtllm_dflash.runtime.text.tokenizer import IncrementalDetokenizer

MAX_STOP_WORDS = 64
MAX_STOP_WORD_LENGTH = 256  # characters
MAX_STOP_TOKEN_IDS = 1024


def check_stops(stop_words: Sequence[str], stop_token_ids: Sequence[int]) -> None:
    """Raise UsageError for stop words that are no words, and for more or longer ones than a request
    may have.
    """
    for name, values, most in (
        ("stop_words", stop_words, MAX_STOP_WORDS),
        ("stop_token_ids", stop_token_ids, MAX_STOP_TOKEN_IDS),
    ):
        if len(values) > most:
            raise UsageError(
                f"{name} holds {len(values)} entries, and a request may have at most {most}."
            )
    for word in stop_words:
        if not isinstance(word, str) or not word:
            raise UsageError(f"stop_words holds {word!r}, expected texts that are not empty.")
        if len(word) > MAX_STOP_WORD_LENGTH:
            raise UsageError(
                f"stop_words holds a text of {len(word)} characters ({word[:40]!r}…), and one may"
                f" have at most {MAX_STOP_WORD_LENGTH}."
            )


class StopWordFilter:
    """Text as tokens come, up to the first stop word; what may be the beginning of one is held
    back.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], stop_words: Sequence[str] = ()
    ) -> None:
        """`decode` turns token ids into text; stop words are not empty."""
        self._stream = IncrementalDetokenizer(decode)
        self._stop_words = tuple(stop_words)
        self._held = ""  # decoded, not yet given out
        self.stopped = False  # whether a stop word has come

    def push(self, token_ids: Sequence[int]) -> tuple[list[int], str]:
        """The tokens up to the one that completes a stop word (all, if none does), and the text
        that they complete.
        """
        if not self._stop_words:
            return list(token_ids), self._stream.push(token_ids)
        text, used = "", list[int]()
        for token in token_ids:
            text += self._give_out(self._stream.push([token]))
            used.append(token)
            if self.stopped:
                break
        return used, text

    def finish(self) -> str:
        """What was held back, once no more tokens follow; nothing after a stop word."""
        if self.stopped:
            return ""
        text = self._give_out(self._stream.finish())
        if not self.stopped:
            text += self._held
        return text

    def _give_out(self, fresh: str) -> str:
        self._held += fresh
        places = [place for word in self._stop_words if (place := self._held.find(word)) >= 0]
        if places:
            self.stopped = True
            return self._held[: min(places)]
        text = self._held[: len(self._held) - self._beginning_of_a_stop_word()]
        self._held = self._held[len(text) :]
        return text

    def _beginning_of_a_stop_word(self) -> int:
        """How many of the last characters may be the beginning of a stop word."""
        longest = min(len(self._held), max(map(len, self._stop_words), default=1) - 1)
        ends = (self._held[len(self._held) - length :] for length in range(longest, 0, -1))
        return next(
            (len(end) for end in ends if any(word.startswith(end) for word in self._stop_words)), 0
        )
