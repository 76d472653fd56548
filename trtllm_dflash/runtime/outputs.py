"""What a generation gives: its tokens as they come, finished answers, costs and counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from trtllm_dflash.errors import DFlashError

FinishReason = Literal["stop", "length", "cancelled"]


class Chunk(NamedTuple):
    """Tokens that one step added to one prompt's answer.

    `text` may lag behind the tokens: it never ends inside a character.
    """

    prompt_index: int
    token_ids: list[int]
    text: str


@dataclass(frozen=True)
class Generation:
    """One prompt's answer.

    token_ids            all new tokens; a stop token that ended the sequence is the last one.
    text                 their text without special tokens; "" for an engine without tokenizer.
    acceptance_lengths   tokens gained by each decode step, bonus included, after cutting at a
                         stop token or the limit. The prefill gives the first token, so
                         sum(acceptance_lengths) + 1 == len(token_ids).
    finish_reason        "stop" (a stop token) or "length" (max_tokens or max_seq_len reached);
                         "cancelled" occurs only with `Engine.serve`.
    prefill_seconds      time of the prompt's own steps, up to the first token.
    decode_seconds       time of the decode steps with this sequence; its batch shares them.
    """

    token_ids: list[int]
    text: str
    acceptance_lengths: list[int]
    finish_reason: FinishReason
    prefill_seconds: float
    decode_seconds: float

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


@dataclass(frozen=True)
class RequestOutput:
    """What a step added to an answer: its tokens, and the text that they completed.

    The last one has `finish_info`. The last one of a cancelled request holds nothing else.
    """

    token_ids: list[int]
    text: str
    finish_info: FinishInfo | None = None


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
