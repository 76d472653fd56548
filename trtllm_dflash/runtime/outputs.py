"""What a generation gives back: its tokens as they come, the finished sequences, and where the time
went.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

FinishReason = Literal["stop", "length", "cancelled"]


class Chunk(NamedTuple):
    """Tokens that one step added to one prompt's answer. `text` may lag behind: it never ends
    inside a character.
    """

    prompt_index: int
    token_ids: list[int]
    text: str


@dataclass(frozen=True)
class Generation:
    """One prompt's answer.

    token_ids            all new tokens; a stop token that ended the sequence is the last one.
    text                 their text without special tokens, "" for an engine without tokenizer files.
    acceptance_lengths   tokens gained by each generation step, bonus included, after cutting at a stop token or the
                         limit. The prompt gives the first token, so sum(acceptance_lengths) + 1 == len(token_ids).
    finish_reason        "stop" (a stop token) or "length" (max_tokens or max_seq_len reached); "cancelled" is for
                         requests of a scheduler.
    prefill_seconds       time of the prompt's own steps, up to the first token.
    decode_seconds   time of the generation steps in which this sequence took part; they are shared with its batch.
    """

    token_ids: list[int]
    text: str
    acceptance_lengths: list[int]
    finish_reason: FinishReason
    prefill_seconds: float
    decode_seconds: float

    @property
    def acceptance_length(self) -> float:
        """The mean acceptance length τ, bonus included; 0.0 where no generation step was needed."""
        return mean(self.acceptance_lengths)


@dataclass
class Timings:
    """Sums over one call. A step's clock covers its inputs, the engine and its outputs; not
    tokenizing, not loading.

    A step that was put under way before the last one's tokens were there counts from that moment
    on. Steps that were computed in vain, since all their sequences had ended, are not counted;
    their time is.
    """

    prompt_tokens: int = 0
    prefill_seconds: float = 0.0
    generated_tokens: int = 0  # by generation steps: each prompt's first token is not among them
    decode_steps: int = 0
    decode_seconds: float = 0.0

    @property
    def decode_tokens_per_second(self) -> float:
        """Tokens per second of the generation steps, all sequences together; 0.0 where there were
        none.
        """
        return self.generated_tokens / self.decode_seconds if self.decode_steps else 0.0


def mean(values: Sequence[float]) -> float:
    """The mean, 0.0 of nothing."""
    return sum(values) / len(values) if values else 0.0
