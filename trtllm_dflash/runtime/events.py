"""What a scheduler tells its callers: an answer's pieces and its end, and how full the engine
is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trtllm_dflash.errors import DFlashError
from trtllm_dflash.runtime.outputs import FinishReason


@dataclass(frozen=True)
class FinishInfo:
    """How an answer ended that did not fail, and what it cost."""

    finish_reason: FinishReason
    input_tokens: int
    output_tokens: int
    steps: int  # generation steps; the prompt gives the first token
    num_draft_tokens: int  # by those steps
    num_accepted_draft_tokens: int
    queue_seconds: float  # from submit to a slot, or to the end where there was none
    first_token_seconds: float | None  # from submit
    seconds: float  # from submit


@dataclass(frozen=True)
class RequestOutput:
    """What a step added to an answer: its tokens, and the text that they completed (whole
    characters).

    The last one has `ended`; where a request was cancelled, nothing else.
    """

    token_ids: list[int]
    text: str
    finish_info: FinishInfo | None = None


Event = RequestOutput | DFlashError
OnEvent = Callable[[Event], None]


@dataclass(frozen=True)
class EngineStats:
    """How full the engine is."""

    waiting: int
    slots: int
    slots_in_use: int
    cache_positions: int
    cache_positions_in_use: int
