"""Answers as OpenAI's clients read them: whole ones, and the chunks of a stream."""

from __future__ import annotations

import math
import secrets
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from trtllm_dflash.options.draft_sources import SOURCES
from trtllm_dflash.runtime.outputs import FinishInfo, RequestOutput, TokenLogprobs, mean
from trtllm_dflash.runtime.text.pieces import ToolCall

TokenNames = Mapping[int, str]
_IMPOSSIBLE = -9999.0  # for the logarithm of 0, which JSON does not have


@dataclass
class _Answer:
    """One answer of a request so far."""

    texts: list[str] = field(default_factory=list)
    reasonings: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    tool_calls: list[ToolCall] = field(default_factory=list)
    num_calls: int = 0  # that a stream has sent
    num_characters: int = 0
    has_begun: bool = False
    finish: FinishInfo | None = None

    def take_in(self, output: RequestOutput) -> None:
        self.texts.append(output.text)
        self.reasonings.append(output.reasoning)
        self.logprobs += output.logprobs or []
        self.tool_calls += output.tool_calls
        self.finish = output.finish_info


class AnswerWriter:
    """Writes the answers to one request; `ChatWriter` and `TextWriter` know the two forms."""

    prefix = ""
    whole_object = ""
    chunk_object = ""

    def __init__(
        self, model: str, num_answers: int, *, n: int, include_usage: bool = False
    ) -> None:
        """Begin a response with an id of its own; `model` is the name that was asked for.

        There are `n` answers to each prompt, one behind the other.
        """
        self._n = n
        self._head = {
            "id": f"{self.prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
        }
        self._answers = [_Answer() for _ in range(num_answers)]
        self._include_usage = include_usage

    def chunk(
        self, index: int, output: RequestOutput, names: TokenNames
    ) -> dict[str, Any] | None:
        """Return a stream's chunk for a step of an answer; None if there is nothing to tell."""
        answer = self._answers[index]
        is_first = not answer.has_begun
        is_last = output.finish_info is not None
        answer.finish = output.finish_info
        has_text = bool(output.text or output.reasoning or output.tool_calls)
        if not (has_text or is_last or output.logprobs or output.token_texts):
            return None
        answer.has_begun = True
        choice = {
            "index": index,
            **self._delta(
                output, "".join(answer.texts) if is_first else None, answer.num_calls
            ),
            "logprobs": self._logprobs(output.logprobs, names, answer.num_characters),
            "finish_reason": None,
        }
        answer.num_calls += len(output.tool_calls)
        if output.finish_info is not None:
            choice["finish_reason"] = _reason(output.finish_info, answer.num_calls)
        answer.num_characters += len(output.text)
        chunk: dict[str, Any] = {
            "object": self.chunk_object,
            **self._head,
            "choices": [choice],
        }
        if self._include_usage:
            chunk["usage"] = None
        if output.token_texts is not None:
            chunk["dflash"] = _origins(output, is_first=is_first)
        return chunk

    def last_chunk(self) -> dict[str, Any] | None:
        """Return the chunk with the usage, if it was asked for."""
        if not self._include_usage:
            return None
        return {
            "object": self.chunk_object,
            **self._head,
            "choices": [],
            **self._costs(),
        }

    def take_in(self, index: int, output: RequestOutput) -> None:
        """Keep a step of an answer that is sent whole."""
        self._answers[index].take_in(output)

    def whole(self, names: TokenNames) -> dict[str, Any]:
        """Return all answers, once they have ended."""
        choices = []
        for index, answer in enumerate(self._answers):
            kept = answer.logprobs or None
            choice = {
                "index": index,
                **self._content(answer),
                "logprobs": self._logprobs(kept, names, answer.num_characters),
                "finish_reason": None,
            }
            if answer.finish is not None:
                choice["finish_reason"] = _reason(answer.finish, len(answer.tool_calls))
            choices.append(choice)
        return {
            "object": self.whole_object,
            **self._head,
            "choices": choices,
            **self._costs(),
        }

    def kept_logprobs(self) -> list[TokenLogprobs]:
        """Return the log probabilities of all answers that are sent whole."""
        return [entry for answer in self._answers for entry in answer.logprobs]

    def _delta(
        self, output: RequestOutput, begin: str | None, num_calls: int
    ) -> dict[str, Any]:
        """Return what a step adds; `begin` stands before the first one, and is None later.

        `num_calls` calls of tools were sent before.
        """
        raise NotImplementedError

    def _content(self, answer: _Answer) -> dict[str, Any]:
        raise NotImplementedError

    def _logprobs(
        self, entries: Sequence[TokenLogprobs] | None, names: TokenNames, offset: int
    ) -> dict[str, Any] | None:
        raise NotImplementedError

    def _costs(self) -> dict[str, Any]:
        ends = [answer.finish for answer in self._answers if answer.finish is not None]
        firsts = self._answers[:: self._n]  # of each prompt
        prompts = [answer.finish for answer in firsts if answer.finish is not None]
        num_input = sum(end.input_tokens for end in prompts)
        num_output = sum(end.output_tokens for end in ends)
        usage = {
            "prompt_tokens": num_input,
            "completion_tokens": num_output,
            "total_tokens": num_input + num_output,
            "prompt_tokens_details": {
                "cached_tokens": sum(end.cached_tokens for end in prompts)
            },
        }
        return {"usage": usage, "dflash": _summary(ends)}


class ChatWriter(AnswerWriter):
    """The form of /v1/chat/completions."""

    prefix = "chatcmpl"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def _delta(
        self, output: RequestOutput, begin: str | None, num_calls: int
    ) -> dict[str, Any]:
        delta: dict[str, Any] = {}
        if begin is not None:
            delta = {"role": "assistant", "content": ""}
        if output.reasoning:
            delta["reasoning_content"] = output.reasoning
        if output.text:
            delta["content"] = output.text
        if output.tool_calls:
            delta["tool_calls"] = [
                {"index": num_calls + place, **_call_object(call)}
                for place, call in enumerate(output.tool_calls)
            ]
        return {"delta": delta}

    def _content(self, answer: _Answer) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": "".join(answer.texts)}
        reasoning = "".join(answer.reasonings)
        if reasoning:
            message["reasoning_content"] = reasoning
        if answer.tool_calls:
            message["content"] = message["content"] or None
            message["tool_calls"] = [_call_object(call) for call in answer.tool_calls]
        return {"message": message}

    def _logprobs(
        self, entries: Sequence[TokenLogprobs] | None, names: TokenNames, offset: int
    ) -> dict[str, Any] | None:
        del offset
        if entries is None:
            return None
        content = []
        for entry in entries:
            top = [_named(token, value, names) for token, value in entry.top]
            row = _named(entry.token_id, entry.logprob, names)
            content.append({**row, "top_logprobs": top})
        return {"content": content, "refusal": None}


class TextWriter(AnswerWriter):
    """The form of /v1/completions, which has one text: what is reasoning stands in it, too."""

    prefix = "cmpl"
    whole_object = "text_completion"
    chunk_object = "text_completion"

    def echo(self, index: int, prompt: str) -> None:
        """Let an answer begin with its prompt; before its first step."""
        self._answers[index].texts.append(prompt)
        self._answers[index].num_characters = len(prompt)

    def take_in(self, index: int, output: RequestOutput) -> None:
        """Keep a step of an answer that is sent whole."""
        super().take_in(index, replace(output, text=output.reasoning + output.text))

    def _delta(
        self, output: RequestOutput, begin: str | None, num_calls: int
    ) -> dict[str, Any]:
        del num_calls
        return {"text": (begin or "") + output.reasoning + output.text}

    def _content(self, answer: _Answer) -> dict[str, Any]:
        return {"text": "".join(answer.texts)}

    def _logprobs(
        self, entries: Sequence[TokenLogprobs] | None, names: TokenNames, offset: int
    ) -> dict[str, Any] | None:
        if entries is None:
            return None
        tops, offsets = [], []
        for entry in entries:
            tops.append({names[token]: _finite(value) for token, value in entry.top})
            offsets.append(offset)
            offset += len(names[entry.token_id])
        return {
            "tokens": [names[entry.token_id] for entry in entries],
            "token_logprobs": [_finite(entry.logprob) for entry in entries],
            "top_logprobs": tops,
            "text_offset": offsets,
        }


def ids_of(entries: Sequence[TokenLogprobs] | None) -> set[int]:
    """Return every token of some log probabilities."""
    found = set[int]()
    for entry in entries or ():
        found.add(entry.token_id)
        found |= {token for token, _ in entry.top}
    return found


def _named(token: int, logprob: float, names: TokenNames) -> dict[str, Any]:
    """Return a token as OpenAI lists it; bytes are known where they are whole characters."""
    text = names[token]
    known = "\N{REPLACEMENT CHARACTER}" not in text
    return {
        "token": text,
        "logprob": _finite(logprob),
        "bytes": list(text.encode()) if known else None,
    }


def _finite(value: float) -> float:
    return float(value) if math.isfinite(value) else _IMPOSSIBLE


def _reason(finish: FinishInfo, num_calls: int) -> str:
    if num_calls and finish.finish_reason == "stop":
        return "tool_calls"
    return finish.finish_reason


def _call_object(call: ToolCall) -> dict[str, Any]:
    """Return a call as OpenAI has it, with an id that an answer to it names."""
    return {
        "id": f"call_{secrets.token_hex(12)}",
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }


def _origins(output: RequestOutput, *, is_first: bool) -> dict[str, Any]:
    """Return where each token of a chunk came from; the texts joined are the chunk's."""
    tokens = []
    assert output.token_texts is not None
    for source, shown in zip(output.sources, output.token_texts, strict=True):
        token = {"text": shown.text, "source": source}
        if shown.reasoning:
            token["reasoning"] = shown.reasoning
        tokens.append(token)
    # The first token comes from the prefill, which verifies no drafts.
    return {"tokens": tokens, "acceptance": None if is_first else len(tokens)}


def _summary(ends: Sequence[FinishInfo]) -> dict[str, Any]:
    """Return what drafting has done for all answers together, and how long they took."""
    lengths = [length for end in ends for length in end.acceptance_lengths]
    counts = Counter(lengths)
    drafts = {}
    for source in SOURCES:
        of_source = [end.num_drafts_of(source) for end in ends]
        verified = sum(count.verified for count in of_source)
        accepted = sum(count.accepted for count in of_source)
        drafts[source] = {"verified": verified, "accepted": accepted}
    firsts = [end.first_token_seconds for end in ends if end.first_token_seconds is not None]
    seeds = [end.seed for end in ends]
    return {
        "acceptance_length": round(mean(lengths), 4),
        # Entry i counts the decode steps that gave i + 1 tokens.
        "acceptance_histogram": [counts[i + 1] for i in range(max(counts, default=0))],
        "drafts": drafts,
        "steps": len(lengths),
        "seeds": None if None in seeds else seeds,
        "timings": {
            "queue_seconds": max((end.queue_seconds for end in ends), default=0.0),
            "first_token_seconds": min(firsts, default=None),
            "seconds": max((end.seconds for end in ends), default=0.0),
        },
    }
