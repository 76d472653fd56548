"""Conversations for `Engine.chat`: one or many, as the token ids of prompts; tools they have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from trtllm_dflash.engine_dir.files import TOKENIZER_FILE
from trtllm_dflash.errors import UsageError
from trtllm_dflash.options.checks import as_list, shown
from trtllm_dflash.options.sampling import SamplingParams
from trtllm_dflash.options.tools import ToolChoice
from trtllm_dflash.runtime.prompt_inputs import MAX_PROMPTS
from trtllm_dflash.runtime.text.chat_messages import Messages
from trtllm_dflash.runtime.text.tokenizer import Tokenizer
from trtllm_dflash.runtime.text.tool_calls import ToolUse, prepare_tools

_EXPECTED = 'a list of {"role": …, "content": …}, or a list of such lists'


@dataclass(frozen=True)
class ChatPrompts:
    """Conversations as prompts, and the sampling options that their tools need."""

    prompts: list[list[int]]
    sampling_options: dict[str, Any] = field(default_factory=dict)

    def sampling(
        self, given: SamplingParams | None, options: Mapping[str, Any]
    ) -> SamplingParams:
        """Return what a call was given, with these options.

        Raises:
            UsageError: for options that do not go together.
        """
        sampling = SamplingParams.of_call(given, options)
        return replace(sampling, **self.sampling_options) if self.sampling_options else sampling


def encode_conversations(
    tokenizer: Tokenizer | None,
    messages: Messages | Sequence[Messages],
    chat_template_kwargs: Mapping[str, Any] | None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    tool_choice: ToolChoice | None = None,
) -> ChatPrompts:
    """Return one conversation, or each in a list, as prompts.

    Raises:
        UsageError: without a tokenizer, or for what is no conversation, no tool or no choice.
    """
    if tokenizer is None:
        raise UsageError(f"chat needs text, and this engine has no {TOKENIZER_FILE}.")
    options = {} if chat_template_kwargs is None else chat_template_kwargs
    if not isinstance(options, Mapping) or not all(isinstance(name, str) for name in options):
        raise UsageError(
            f"chat_template_kwargs is {shown(options)}, expected a mapping from names to values."
        )
    conversations = as_conversations(messages)
    uses = [ToolUse(conversation) for conversation in conversations]
    if tools is not None or tool_choice is not None:
        uses = [
            prepare_tools(conversation, tools, tool_choice, tokenizer)
            for conversation in conversations
        ]
    prompts = [
        tokenizer.encode_chat(use.messages, **options, **use.template_options) for use in uses
    ]
    return ChatPrompts(prompts, uses[0].sampling_options)


def as_conversations(messages: Any) -> list[Any]:
    """Return a list of conversations; one alone becomes a list of one.

    Raises:
        UsageError: for anything else.
    """
    if isinstance(messages, str):
        return [messages]
    items = as_list("messages", messages, expected=_EXPECTED, limit=MAX_PROMPTS)
    if not items:
        raise UsageError("messages is empty: give at least one.")
    return [items] if isinstance(items[0], Mapping) else items
