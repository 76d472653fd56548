"""What requests may hold, as OpenAI's clients send it, with the few fields that are ours.

Types are strict and unknown fields are refused, so that no wish is dropped in silence.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from trtllm_dflash.options.queueing import MAX_TIMEOUT_SECONDS
from trtllm_dflash.options.row_sampling import MAX_FLOAT32, MAX_INT32
from trtllm_dflash.options.sampling import (
    MAX_LOGPROBS,
    MAX_N,
    MAX_STOP_TOKEN_IDS,
    MAX_STOP_WORD_LENGTH,
    MAX_STOP_WORDS,
)
from trtllm_dflash.options.tools import MAX_TOOLS

MAX_BIASES = 1024
MAX_MESSAGES = 4096
MAX_MODEL_NAME = 1024
MAX_PARTS = 1024  # of a message
MAX_PROMPTS = 128  # of a completion request
_INT64 = 2**63

_StopWord = Annotated[str, Field(min_length=1, max_length=MAX_STOP_WORD_LENGTH)]
_TokenId = Annotated[int, Field(ge=0, le=MAX_INT32)]


class Strict(BaseModel):
    """An object whose fields are all known, and of exactly their types."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(Strict):
    """What a stream has beside the answer."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # there is none, whatever is asked


class DraftDetails(Strict):
    """What the answer says of drafting."""

    tokens: bool = Field(
        default=False,
        description="each chunk of a stream says of each token where it came from",
    )


class GenerationBody(Strict):
    """The fields that both endpoints have."""

    model: str = Field(max_length=MAX_MODEL_NAME)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(default=None, ge=0, le=MAX_FLOAT32)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1, le=MAX_INT32)
    min_p: float | None = Field(default=None, ge=0, le=1)
    seed: int | None = Field(default=None, ge=-_INT64, lt=2 * _INT64)
    stop: _StopWord | Annotated[list[_StopWord], Field(max_length=MAX_STOP_WORDS)] | None = None
    n: int | None = Field(default=None, ge=1, le=MAX_N)
    max_tokens: int | None = Field(default=None, ge=1, le=MAX_INT32)
    min_tokens: int | None = Field(default=None, ge=0, le=MAX_INT32)
    stop_token_ids: list[_TokenId] | None = Field(default=None, max_length=MAX_STOP_TOKEN_IDS)
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = Field(default=None, max_length=MAX_BIASES)
    bad_words: list[_StopWord] | None = Field(default=None, max_length=MAX_STOP_WORDS)
    # What the answer may be. Their own checks are in `options/guidance.py`.
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    user: str | None = None
    # Drafts and the queue: ours.
    draft: bool | None = Field(default=None, description="false: plain decoding")
    draft_len: int | Literal["auto"] | None = None
    drafts: Literal["dflash", "lookup", "both"] | None = None
    priority: int | None = Field(default=None, ge=-MAX_INT32 - 1, le=MAX_INT32)
    timeout_seconds: float | None = Field(default=None, gt=0, le=MAX_TIMEOUT_SECONDS)
    dflash: DraftDetails | None = None


class MessageBody(Strict):
    """One message of a conversation; what an assistant's answer has may be sent back."""

    role: str = Field(min_length=1, max_length=64)
    content: str | Annotated[list[Any], Field(max_length=MAX_PARTS)] | None = None
    name: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[dict[str, Any]] | None = Field(default=None, max_length=MAX_PARTS)
    tool_call_id: str | None = None
    # An answer of OpenAI's client has these, empty.
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None


class ChatBody(GenerationBody):
    """The body of /v1/chat/completions."""

    messages: list[MessageBody] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=MAX_INT32)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    response_format: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = Field(default=None, max_length=MAX_TOOLS)
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    # Without effect here: whose request it is, and what OpenAI's own service does with it.
    metadata: dict[str, Any] | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: Literal[False] | None = None


_TextOrTokens = str | list[_TokenId]


class CompletionBody(GenerationBody):
    """The body of /v1/completions."""

    prompt: (
        str
        | list[_TokenId]
        | Annotated[list[str], Field(max_length=MAX_PROMPTS)]
        | Annotated[list[list[_TokenId]], Field(max_length=MAX_PROMPTS)]
    )
    echo: bool | None = None
    logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    best_of: int | None = None
