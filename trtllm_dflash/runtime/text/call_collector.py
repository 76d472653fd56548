"""What the pieces of an answer add to it: text, reasoning, and calls of tools."""

from __future__ import annotations

from collections.abc import Iterable

from trtllm_dflash.runtime.text.pieces import Delta, Piece, ToolCall
from trtllm_dflash.runtime.text.tool_calls import ToolCallFilter, ToolFormat, whole_call


class CallCollector:
    """Joins pieces into deltas; calls are read in one format, or not at all."""

    def __init__(self, form: ToolFormat | None) -> None:
        """Take the format of calls, None where they are not read."""
        self._filter = None if form in (None, "harmony") else ToolCallFilter(form)
        self._name: str | None = None  # of the call that is open
        self._arguments = ""

    def push(self, pieces: Iterable[Piece]) -> Delta:
        """Return what pieces add."""
        text = reasoning = ""
        calls: list[ToolCall] = []
        for piece in pieces:
            if piece.role == "call_name":
                self._name = (self._name or "") + piece.text
            elif piece.role == "call":
                self._arguments += piece.text
            else:
                reasoning += self._end_call(calls)
                text += piece.text if piece.role == "text" else ""
                reasoning += piece.text if piece.role == "reasoning" else ""
        if self._filter is not None:
            text, found = self._filter.push(text)
            calls += found
        return Delta(text, reasoning, tuple(calls))

    def finish(self, pieces: Iterable[Piece]) -> Delta:
        """Return what the last pieces add, and what was held back."""
        delta = self.push(pieces)
        calls: list[ToolCall] = []
        reasoning = self._end_call(calls)
        text = ""
        if self._filter is not None:
            text, found = self._filter.finish()
            calls += found
        return delta.joined(Delta(text, reasoning, tuple(calls)))

    def _end_call(self, calls: list[ToolCall]) -> str:
        """Take the call that is open, if it is whole; else return what it has, as reasoning."""
        name, arguments = self._name, self._arguments
        self._name, self._arguments = None, ""
        if name is None:
            return ""
        call = whole_call(name, arguments)
        if call is None:
            return arguments
        calls.append(call)
        return ""
