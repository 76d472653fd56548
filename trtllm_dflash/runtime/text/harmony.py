"""The messages of gpt-oss ("harmony"): which parts of an answer are meant for the user.

    <|start|>assistant<|channel|>analysis<|message|>…<|end|>
    <|start|>assistant<|channel|>final<|message|>…<|return|>

A header says who writes and on which channel, and a body follows. Bodies of the final channel are
text. All others are reasoning: analysis, commentary, calls of tools. An answer begins where its
prompt ends, which may be inside a header or a body.

Models do not always keep to it, so every sequence of tokens has a meaning:

- Outside headers and bodies, everything is text.
- A body without a channel is text if the assistant writes it.
- A header without end is a body after MAX_HEADER_TOKENS tokens. If the answer ends before, it shows
  nothing where it has a channel, and is text where it has none.
- A second body of the same kind begins on a new line.
- A body to=functions.NAME is a call of that tool where calls are read, and reasoning elsewhere.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from trtllm_dflash.runtime.text.detokenizer import IncrementalDetokenizer
from trtllm_dflash.runtime.text.pieces import Piece, Role, split_at

MAX_HEADER_TOKENS = 64
_RECIPIENT = "to=functions."

_Mark = Literal["start", "channel", "message", "end"]
_MARKS: dict[str, _Mark] = {
    "<|start|>": "start",
    "<|channel|>": "channel",
    "<|message|>": "message",
    "<|end|>": "end",
    "<|return|>": "end",
    "<|call|>": "end",
}


def harmony_marks(special_tokens: Mapping[str, int]) -> dict[int, _Mark] | None:
    """Return the ids that give messages their form; None for a tokenizer without them."""
    if not {"<|channel|>", "<|message|>"} <= special_tokens.keys():
        return None
    return {
        special_tokens[text]: mark for text, mark in _MARKS.items() if text in special_tokens
    }


@dataclass
class _Header:
    """A header that has begun: its tokens, and how many of them the prompt has."""

    has_channel: bool
    token_ids: list[int]
    num_in_prompt: int = 0


class HarmonyReader:
    """Reads messages; special tokens and headers are hidden."""

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        special: Mapping[int, str],
        marks: Mapping[int, _Mark],
        prompt_ids: Sequence[int],
        *,
        reads_calls: bool = False,
    ) -> None:
        """Take what decodes tokens, the special tokens' texts by id, the marks, and the prompt."""
        self._reads_calls = reads_calls
        self._called: str | None = None  # the tool that the message in hand calls
        self._decode = decode
        self._special = special
        self._marks = marks
        self._role: Role = "text"
        self._body = IncrementalDetokenizer(decode)
        self._header: _Header | None = None
        self._shown: dict[Role, bool] = {}  # whether a body of that role has shown anything
        self._needs_line = False
        self._begin(list(prompt_ids))

    def push(self, token_ids: Sequence[int]) -> list[Piece]:
        """Return the pieces that these tokens complete."""
        pieces: list[Piece] = []
        for run in split_at(token_ids, self._special):
            if run[0] in self._special:
                pieces += self._take_special(run[0])
            elif self._header is not None:
                pieces += self._take_header_tokens(run)
            else:
                pieces += self._visible(self._body.push(run))
        return pieces

    def finish(self) -> list[Piece]:
        """Return what was held back; no tokens may follow."""
        return self._end_header() + self._end_body()

    def copy(self) -> HarmonyReader:
        """Return one that goes on from here by itself."""
        twin = copy.copy(self)
        twin._body = self._body.copy()
        twin._header = copy.deepcopy(self._header)
        twin._shown = dict(self._shown)
        return twin

    def _begin(self, prompt_ids: list[int]) -> None:
        """Go to where the prompt ends; its own text is not shown."""
        places = [place for place, token in enumerate(prompt_ids) if token in self._marks]
        if not places:
            return
        last = places[-1]
        mark = self._marks[prompt_ids[last]]
        if mark in ("start", "channel"):
            rest = prompt_ids[last + 1 :][:MAX_HEADER_TOKENS]
            self._header = _Header(mark == "channel", rest, len(rest))
        elif mark == "message" and len(places) > 1:
            before = places[-2]
            header = prompt_ids[before + 1 : last][:MAX_HEADER_TOKENS]
            has_channel = self._marks[prompt_ids[before]] == "channel"
            self._role = self._role_of(_Header(has_channel, header))

    def _take_special(self, token: int) -> list[Piece]:
        hidden = [Piece("hidden", self._special[token])]
        mark = self._marks.get(token)
        if mark is None:
            return hidden
        if mark == "message":
            return self._take_message_mark(hidden)
        pieces = self._hidden_header() if mark == "channel" else self._end_header()
        pieces += self._end_body()
        self._role = "text"
        if mark != "channel":
            self._called = None
        if mark in ("start", "channel"):
            self._header = _Header(mark == "channel", [])
        return pieces + hidden

    def _take_message_mark(self, hidden: list[Piece]) -> list[Piece]:
        """Begin a body; inside a body or outside a message the mark says nothing."""
        header = self._header
        if header is None:
            return hidden
        pieces = self._hidden_header() + hidden
        if self._called is None:
            self._open_body(self._role_of(header))
            return pieces
        self._open_body("call")
        return [*pieces, Piece("call_name", self._called)]

    def _take_header_tokens(self, token_ids: list[int]) -> list[Piece]:
        header = self._header
        assert header is not None
        room = MAX_HEADER_TOKENS - len(header.token_ids)
        header.token_ids += token_ids[:room]
        if len(token_ids) <= room:
            return []
        written = header.token_ids[header.num_in_prompt :] + token_ids[room:]
        self._header = None
        self._open_body(self._role_of(header) if header.has_channel else "text")
        return self._visible(self._body.push(written))

    def _hidden_header(self) -> list[Piece]:
        """End a header as one that is complete."""
        header, self._header = self._header, None
        if header is None:
            return []
        if self._reads_calls:
            self._called = self._recipient(header) or self._called
        return [Piece("hidden", self._decode(header.token_ids[header.num_in_prompt :]))]

    def _recipient(self, header: _Header) -> str | None:
        """Return the tool that a header calls, None where it calls none."""
        for word in self._decode(header.token_ids).split():
            if word.startswith(_RECIPIENT):
                return word.removeprefix(_RECIPIENT) or None
        return None

    def _end_header(self) -> list[Piece]:
        """End a header that no body follows."""
        header = self._header
        if header is None or header.has_channel:
            return self._hidden_header()
        self._header = None
        self._open_body("text")
        return self._visible(self._body.push(header.token_ids[header.num_in_prompt :]))

    def _role_of(self, header: _Header) -> Role:
        words = self._decode(header.token_ids).split()
        name = words[0] if words else ""
        expected = "final" if header.has_channel else "assistant"
        return "text" if name == expected else "reasoning"

    def _open_body(self, role: Role) -> None:
        self._role = role
        self._body = IncrementalDetokenizer(self._decode)
        self._needs_line = role != "call" and self._shown.get(role, False)

    def _end_body(self) -> list[Piece]:
        pieces = self._visible(self._body.finish())
        self._open_body("text")
        return pieces

    def _visible(self, text: str) -> list[Piece]:
        """Return a piece of the body; one that follows another body begins on a new line."""
        if not text:
            return []
        begin = "\n" if self._needs_line else ""
        self._needs_line = False
        self._shown[self._role] = True
        return [Piece(self._role, begin + text)]
