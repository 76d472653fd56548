"""What a generation gives: its tokens as they come, finished answers, costs and counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from trtllm_dflash.errors import DFlashError
from trtllm_dflash.options.draft_sources import DraftCount, DraftSource, TokenSource
from trtllm_dflash.runtime.text.pieces import TokenText, ToolCall

FinishReason = Literal["stop", "length", "cancelled"]


class TokenLogprobs(NamedTuple):
    """Natural logarithms of probabilities at one place of an answer.

    They are the model's own: before temperature, top-k, top-p and min-p.
    """

    token_id: int  # the chosen token
    logprob: float
    top: tuple[tuple[int, float], ...]  # the k most likely tokens, the likeliest first


@dataclass(frozen=True)
class Chunk:
    """Tokens that one step added to one answer; it unpacks into its first three fields.

    `text` may lag behind the tokens: it never ends inside a character, nor inside what may become
    a stop word. `reasoning` is what the step adds to `Generation.reasoning`. `logprobs` has an
    entry for each token, if they were asked for. `tool_calls` has the calls that are whole now.
    `sources` says of each token whether it is the
    target's own or an accepted draft. So does `token_texts`, if asked for, what it has made
    visible; joined they are `text` and `reasoning`.
    """

    prompt_index: int
    token_ids: list[int]
    text: str
    reasoning: str = ""
    sample_index: int = 0
    logprobs: list[TokenLogprobs] | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    sources: list[TokenSource] = field(default_factory=list)
    token_texts: list[TokenText] | None = None

    def __iter__(self) -> Iterator[Any]:
        return iter((self.prompt_index, self.token_ids, self.text))


@dataclass(frozen=True)
class Generation:
    """One answer to one prompt.

    token_ids            all new tokens; a stop token that ended the sequence is the last one.
    text                 their text, which is that of the stream's chunks joined. Bytes that are no
                         character are U+FFFD. Special tokens are left out unless asked for; "" for
                         an engine without tokenizer.
    acceptance_lengths   tokens gained by each decode step, bonus included, after cutting at a
                         stop token or the limit. The prefill gives the first token, so
                         sum(acceptance_lengths) + 1 == len(token_ids).
    finish_reason        "stop" (a stop token or a stop word) or "length" (max_tokens or
                         max_seq_len reached); "cancelled" occurs only with `Engine.serve`.
    prefill_seconds      time of the prompt's own steps, up to the first token.
    decode_seconds       time of the decode steps with this sequence; its batch shares them.
    reasoning            what the model wrote outside its final answer, where its format tells them
                         apart (gpt-oss; thinking in <think>); else "".
    seed                 the one used: given alone, it repeats the answer. None for greedy decoding.
    logprobs             an entry for each token, if they were asked for; else None.
    sample_index         which of the prompt's `n` answers this is.
    prompt_token_ids     the prompt's tokens.
    cached_tokens        how many of them the prefix cache knew.
    drafts_by_source     verified and accepted drafts by what drafted them, "dflash" or "lookup".
    tool_calls           the calls of tools, if they were asked for; they are no part of the text.
    """

    token_ids: list[int]
    text: str
    acceptance_lengths: list[int]
    finish_reason: FinishReason
    prefill_seconds: float
    decode_seconds: float
    reasoning: str = ""
    seed: int | None = None
    logprobs: list[TokenLogprobs] | None = None
    sample_index: int = 0
    prompt_token_ids: list[int] = field(default_factory=list, repr=False)
    cached_tokens: int = 0
    drafts_by_source: dict[DraftSource, DraftCount] = field(default_factory=dict)
    tool_calls: list[ToolCall] = field(default_factory=list)

    @property
    def acceptance_length(self) -> float:
        """Return the mean acceptance length τ, bonus included; 0.0 without decode steps."""
        return mean(self.acceptance_lengths)


@dataclass(frozen=True)
class FinishInfo:
    """How an answer ended, unless it failed, and what it cost."""

    finish_reason: FinishReason
    input_tokens: int
    output_tokens: int
    steps: int  # decode steps; the prefill gives the first token
    num_draft_tokens: int  # that those steps verified
    num_accepted_draft_tokens: int
    queue_seconds: float  # from submit to a slot, or to the end if it got none
    first_token_seconds: float | None  # from submit
    seconds: float  # from submit
    seed: int | None = None  # None for greedy decoding
    cached_tokens: int = 0  # of the prompt, which the prefix cache knew
    drafts_by_source: dict[DraftSource, DraftCount] = field(default_factory=dict)
    acceptance_lengths: Sequence[int] = ()  # tokens of each decode step, bonus included

    def num_drafts_of(self, source: DraftSource) -> DraftCount:
        """Return the verified and accepted drafts of one source."""
        return self.drafts_by_source.get(source, DraftCount(0, 0))


@dataclass(frozen=True)
class RequestOutput:
    """What a step added to an answer: its tokens, and the text that they completed.

    The last one has `finish_info`. The last one of a cancelled request holds nothing else. Of
    `n` answers each has its own outputs, its own last one, and its `sample_index`. `sources` and
    `token_texts` are those of `Chunk`.
    """

    token_ids: list[int]
    text: str
    finish_info: FinishInfo | None = None
    reasoning: str = ""
    logprobs: list[TokenLogprobs] | None = None  # an entry for each token, if asked for
    sample_index: int = 0
    tool_calls: tuple[ToolCall, ...] = ()  # those that are whole now
    sources: list[TokenSource] = field(default_factory=list)
    token_texts: list[TokenText] | None = None

    @property
    def ended(self) -> FinishInfo | None:
        """Return `finish_info` under the name that it had before."""
        return self.finish_info


Event = RequestOutput | DFlashError
OnEvent = Callable[[Event], None]


@dataclass(frozen=True)
class EngineStats:
    """How full an engine is."""

    waiting: int
    slots: int
    slots_in_use: int
    cache_positions: int
    cache_positions_in_use: int


@dataclass
class Timings:
    """Sums over one call: inputs, engine and outputs of each step; no tokenizing, no loading.

    A step that was launched before the last one's tokens were there counts from that moment on.
    Discarded steps, all of whose sequences had ended, are not counted; their time is.
    """

    prompt_tokens: int = 0
    prefill_seconds: float = 0.0
    generated_tokens: int = 0  # by decode steps, so without each prompt's first token
    decode_steps: int = 0
    decode_seconds: float = 0.0

    @property
    def decode_tokens_per_second(self) -> float:
        """Return tokens per second of the decode steps, all sequences together, or 0.0."""
        return self.generated_tokens / self.decode_seconds if self.decode_steps else 0.0


def mean(values: Sequence[float]) -> float:
    """Return the mean, or 0.0 if there are no values."""
    return sum(values) / len(values) if values else 0.0
