"""The text of one answer as its tokens come: characters, channels, stop words."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial

from trtllm_dflash.options.sampling import SamplingParams
from trtllm_dflash.runtime.text.call_collector import CallCollector
from trtllm_dflash.runtime.text.harmony import HarmonyReader, harmony_marks
from trtllm_dflash.runtime.text.pieces import (
    NOTHING,
    Delta,
    Piece,
    PlainReader,
    Reader,
    TokenText,
    ToolCall,
)
from trtllm_dflash.runtime.text.stop_words import StopWordFilter
from trtllm_dflash.runtime.text.thinking import ThinkReader, think_marks
from trtllm_dflash.runtime.text.tokenizer import Tokenizer
from trtllm_dflash.runtime.text.tool_calls import ToolFormat, tool_format

# Model types whose answers are messages on channels, and what reads them.
_HARMONY_MODELS = frozenset({"gpt_oss"})


class AnswerText:
    """What is shown of an answer, up to its first stop word.

    The deltas joined are the answer's text and reasoning, however its tokens come in steps.
    """

    def __init__(
        self,
        reader: Reader | None,
        stop_words: Sequence[str] = (),
        *,
        min_tokens: int = 0,
        call_format: ToolFormat | None = None,
        by_token: bool = False,
    ) -> None:
        """Take what reads tokens, None for no text at all.

        No stop word counts that is complete with the first `min_tokens` tokens. Calls of tools are
        read where there is a format. With `by_token` there are `token_texts`.
        """
        self._collector = CallCollector(call_format)
        self._calls: list[ToolCall] = []
        # What each token of the last push has made visible, and behind the last one the end.
        self.token_texts: list[TokenText] | None = None
        self._by_token = by_token
        self._reader = reader
        self._stops = StopWordFilter(stop_words)
        self._looks_for_stops = bool(stop_words)
        self._tokens_before_stops = min_tokens if stop_words else 0
        self._texts: list[str] = []
        self._reasonings: list[str] = []

    @property
    def text(self) -> str:
        """Return the text so far."""
        return "".join(self._texts)

    @property
    def reasoning(self) -> str:
        """Return the reasoning so far."""
        return "".join(self._reasonings)

    @property
    def tool_calls(self) -> list[ToolCall]:
        """Return the calls of tools so far."""
        return list(self._calls)

    @property
    def stopped(self) -> bool:
        """Tell whether a stop word has come."""
        return self._stops.stopped

    def push(self, token_ids: Sequence[int]) -> tuple[list[int], Delta]:
        """Return the tokens up to the end of a stop word, and what they add."""
        if not self._by_token:
            return self._push(token_ids)
        used: list[int] = []
        total = NOTHING
        self.token_texts = []
        for token in token_ids:
            used.append(token)
            _, delta = self._push([token])
            self.token_texts.append(TokenText(delta.text, delta.reasoning))
            total = total.joined(delta)
            if self.stopped:
                break
        return used, total

    def _push(self, token_ids: Sequence[int]) -> tuple[list[int], Delta]:
        if self._reader is None:
            return list(token_ids), Delta()
        first = list(token_ids[: self._tokens_before_stops])
        self._tokens_before_stops -= len(first)
        pieces = self._stops.push(self._reader.push(first), may_stop=False) if first else []
        rest = token_ids[len(first) :]
        used, more = self._push_until_stop(rest)
        return first + used, self._keep(self._collector.push(pieces + more))

    def finish(self) -> Delta:
        """Return what was held back, once no more tokens follow; nothing after a stop word."""
        if self._reader is None:
            return Delta()
        if self.stopped:
            delta = self._keep(self._collector.finish([]))
        else:
            pieces = self._stops.push(self._reader.finish())
            delta = self._keep(self._collector.finish(pieces + self._stops.finish()))
        if self.token_texts:
            last = self.token_texts[-1]
            self.token_texts[-1] = TokenText(
                last.text + delta.text, last.reasoning + delta.reasoning
            )
        return delta

    def _push_until_stop(self, token_ids: Sequence[int]) -> tuple[list[int], list[Piece]]:
        """Push tokens together, and one by one if there is a stop word in them.

        So few steps decode more than once, and a stop word is found at the same token in any steps.
        """
        assert self._reader is not None
        if not self._looks_for_stops:
            return list(token_ids), self._reader.push(token_ids)
        reader, stops = self._reader.copy(), self._stops.copy()
        pieces = self._stops.push(self._reader.push(token_ids))
        if not self.stopped:
            return list(token_ids), pieces
        self._reader, self._stops = reader, stops
        used: list[int] = []
        pieces = []
        for token in token_ids:
            pieces += self._stops.push(self._reader.push([token]))
            used.append(token)
            if self.stopped:
                break
        return used, pieces

    def _keep(self, delta: Delta) -> Delta:
        self._texts.append(delta.text)
        self._reasonings.append(delta.reasoning)
        self._calls += delta.tool_calls
        return delta


class AnswerTexts:
    """Makes the `AnswerText` of each answer of an engine."""

    def __init__(self, tokenizer: Tokenizer | None, model_type: str) -> None:
        """Take the engine's tokenizer, which is used at the first request, and its architecture."""
        self._tokenizer = tokenizer
        self._model_type = model_type

    def make(self, prompt_ids: Sequence[int], sampling: SamplingParams) -> AnswerText:
        """Return what makes the text of an answer to a prompt; without a tokenizer it is empty.

        Raises:
            EngineError: if the tokenizer cannot be used.
        """
        reader = None
        if self._tokenizer is not None:
            reader = self._reader(self._tokenizer, prompt_ids, sampling)
        call_format = None
        if sampling.tool_calls and self._tokenizer is not None:
            call_format = tool_format(self._tokenizer, self._model_type)
        return AnswerText(
            reader,
            sampling.stop_words,
            min_tokens=sampling.min_tokens,
            call_format=call_format,
            by_token=sampling.token_texts,
        )

    def _reader(
        self, tokenizer: Tokenizer, prompt_ids: Sequence[int], sampling: SamplingParams
    ) -> Reader:
        if not sampling.skip_special_tokens:
            return PlainReader(partial(tokenizer.decode, skip_special_tokens=False), {})
        marks = harmony_marks(tokenizer.special_tokens)
        if marks is not None and self._model_type in _HARMONY_MODELS:
            return HarmonyReader(
                tokenizer.decode,
                self._special,
                marks,
                prompt_ids,
                reads_calls=sampling.tool_calls,
            )
        thinking = think_marks(tokenizer.think_tokens)
        if thinking is not None:
            return ThinkReader(tokenizer.decode, self._special, thinking, prompt_ids)
        return PlainReader(tokenizer.decode, self._special)

    @cached_property
    def _special(self) -> dict[int, str]:
        """Return the texts of special tokens, by id."""
        assert self._tokenizer is not None
        return {token: text for text, token in self._tokenizer.special_tokens.items()}
