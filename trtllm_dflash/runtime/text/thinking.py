"""Thinking between <think> and </think>, as Qwen3, DeepSeek-R1 and others write it: reasoning.

Some chat templates write the first mark themselves, at the end of the prompt. White space beside a
mark belongs to it, and is shown nowhere.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from trtllm_dflash.runtime.text.detokenizer import IncrementalDetokenizer
from trtllm_dflash.runtime.text.pieces import Piece, split_at

BEGIN, END = "<think>", "</think>"
_MAX_TOKENS_BEHIND = 4  # of a mark that ends a prompt: line ends


class ThinkMarks(NamedTuple):
    """The ids of the two marks."""

    begin: int
    end: int


def think_marks(added_tokens: Mapping[str, int]) -> ThinkMarks | None:
    """Return the marks of a tokenizer that has a token for each; else None."""
    if not {BEGIN, END} <= added_tokens.keys():
        return None
    return ThinkMarks(added_tokens[BEGIN], added_tokens[END])


class ThinkReader:
    """Reads an answer that may begin with thinking; marks and special tokens are hidden."""

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        special: Mapping[int, str],
        marks: ThinkMarks,
        prompt_ids: Sequence[int],
    ) -> None:
        """Take what decodes tokens, the special tokens' texts by id, the marks, and the prompt."""
        self._decode = decode
        self._special = {**special, marks.begin: BEGIN, marks.end: END}
        self._marks = marks
        self._text = IncrementalDetokenizer(decode)
        self._is_thinking = _ends_with_mark(prompt_ids, marks.begin, decode)
        self._is_beside_mark = self._is_thinking  # so far only white space behind a mark
        self._gap = ""  # white space in the thinking, which may come before the last mark

    def push(self, token_ids: Sequence[int]) -> list[Piece]:
        """Return the pieces that these tokens complete."""
        pieces: list[Piece] = []
        for run in split_at(token_ids, self._special):
            if run[0] not in self._special:
                pieces += self._visible(self._text.push(run))
                continue
            if run[0] in self._marks:
                pieces += self._take_mark(run[0])
            pieces.append(Piece("hidden", self._special[run[0]]))
        return pieces

    def finish(self) -> list[Piece]:
        """Return what was held back; no tokens may follow."""
        pieces = self._visible(self._text.finish())
        gap, self._gap = self._gap, ""
        return [*pieces, Piece("reasoning", gap)] if gap else pieces

    def copy(self) -> ThinkReader:
        """Return one that goes on from here by itself."""
        twin = copy.copy(self)
        twin._text = self._text.copy()
        return twin

    def _take_mark(self, token: int) -> list[Piece]:
        pieces = self._visible(self._text.finish())
        self._text = IncrementalDetokenizer(self._decode)
        self._is_thinking = token == self._marks.begin
        self._is_beside_mark = True
        self._gap = ""
        return pieces

    def _visible(self, text: str) -> list[Piece]:
        if self._is_beside_mark:
            text = text.lstrip()
            self._is_beside_mark = not text
        if not self._is_thinking:
            return [Piece("text", text)] if text else []
        text = self._gap + text
        shown = text.rstrip()
        self._gap = text[len(shown) :]
        return [Piece("reasoning", shown)] if shown else []


def _ends_with_mark(
    prompt_ids: Sequence[int], mark: int, decode: Callable[[Sequence[int]], str]
) -> bool:
    """Tell whether a prompt ends with a mark and white space: its template has begun to think."""
    tail = list(prompt_ids[-1 - _MAX_TOKENS_BEHIND :])
    if mark not in tail:
        return False
    behind = tail[len(tail) - tail[::-1].index(mark) :]
    return not behind or not decode(behind).strip()
