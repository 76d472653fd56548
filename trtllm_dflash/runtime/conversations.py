"""Conversations for `Engine.chat`: one or many, as the token ids of prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trtllm_dflash.engine_dir.files import TOKENIZER_FILE
from trtllm_dflash.errors import UsageError
from trtllm_dflash.options.checks import as_list, shown
from trtllm_dflash.runtime.prompt_inputs import MAX_PROMPTS
from trtllm_dflash.runtime.text.chat_messages import Messages
from trtllm_dflash.runtime.text.tokenizer import Tokenizer

_EXPECTED = 'a list of {"role": …, "content": …}, or a list of such lists'


def encode_conversations(
    tokenizer: Tokenizer | None,
    messages: Messages | Sequence[Messages],
    chat_template_kwargs: Mapping[str, Any] | None,
) -> list[list[int]]:
    """Return the token ids of one conversation, or of each in a list.

    Raises:
        UsageError: without a tokenizer, or for what is no conversation.
    """
    if tokenizer is None:
        raise UsageError(f"chat needs text, and this engine has no {TOKENIZER_FILE}.")
    options = {} if chat_template_kwargs is None else chat_template_kwargs
    if not isinstance(options, Mapping) or not all(isinstance(name, str) for name in options):
        raise UsageError(
            f"chat_template_kwargs is {shown(options)}, expected a mapping from names to values."
        )
    conversations = as_conversations(messages)
    return [tokenizer.encode_chat(conversation, **options) for conversation in conversations]


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
