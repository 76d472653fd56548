"""Pieces of an answer: what is shown as text or as reasoning, and what is only looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

from trtllm_dflash.runtime.text.detokenizer import IncrementalDetokenizer

# "hidden": special tokens and what belongs to them. Only stop words are looked for in it.
# "call_name" begins a call of a tool, and "call" is its arguments.
Role = Literal["text", "reasoning", "hidden", "call_name", "call"]


class Piece(NamedTuple):
    """A part of an answer in the order in which the model wrote it."""

    role: Role
    text: str


class ToolCall(NamedTuple):
    """A call of a tool; `arguments` is JSON as the model wrote it, as in OpenAI's answers."""

    name: str
    arguments: str


class Delta(NamedTuple):
    """What is new of an answer; each call is whole."""

    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()

    def joined(self, later: Delta) -> Delta:
        """Return this and what came after it as one."""
        return Delta(
            self.text + later.text,
            self.reasoning + later.reasoning,
            self.tool_calls + later.tool_calls,
        )


NOTHING = Delta()


class TokenText(NamedTuple):
    """What one token has made visible of an answer: often a word, nothing inside a character."""

    text: str = ""
    reasoning: str = ""


class Reader(Protocol):
    """Turns tokens as they come into pieces."""

    def push(self, token_ids: Sequence[int]) -> list[Piece]:
        """Return the pieces that these tokens complete."""
        ...

    def finish(self) -> list[Piece]:
        """Return what was held back; no tokens may follow."""
        ...

    def copy(self) -> Reader:
        """Return one that goes on from here by itself."""
        ...


class PlainReader:
    """An answer that is all text; special tokens among it are hidden."""

    def __init__(
        self, decode: Callable[[Sequence[int]], str], special: Mapping[int, str]
    ) -> None:
        """Take what decodes tokens, and the texts of the tokens to hide by id."""
        self._special = special
        self._text = IncrementalDetokenizer(decode)

    def push(self, token_ids: Sequence[int]) -> list[Piece]:
        """Return the pieces that these tokens complete."""
        pieces = []
        for run in split_at(token_ids, self._special):
            if run[0] in self._special:
                pieces.append(Piece("hidden", self._special[run[0]]))
            else:
                pieces.append(Piece("text", self._text.push(run)))
        return pieces

    def finish(self) -> list[Piece]:
        """Return what was held back; no tokens may follow."""
        return [Piece("text", self._text.finish())]

    def copy(self) -> PlainReader:
        """Return one that goes on from here by itself."""
        twin = PlainReader(self._text.decode, self._special)
        twin._text = self._text.copy()
        return twin


def split_at(token_ids: Iterable[int], special: Mapping[int, str]) -> list[list[int]]:
    """Return runs of tokens, none empty; each special token is a run of its own."""
    runs: list[list[int]] = []
    begin_next = True
    for token in token_ids:
        is_special = token in special
        if begin_next or is_special:
            runs.append([token])
        else:
            runs[-1].append(token)
        begin_next = is_special
    return runs
