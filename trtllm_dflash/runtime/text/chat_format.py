"""How the texts and conversations of a command become token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

from trtllm_dflash.options.prompt_options import ChatOptions
from trtllm_dflash.runtime.text.tokenizer import Tokenizer

Conversation: TypeAlias = "list[dict[str, Any]]"
# A text, token ids, or a conversation of messages with role and content.
PromptContent: TypeAlias = "str | list[int] | Conversation"

_LEADING_ROLES = ("system", "developer")


@dataclass(frozen=True)
class ChatFormat:
    """A way of putting texts.

    chat              in the model's chat format; False: as they are.
    system            a system message for each conversation that has none of its own.
    template_options  options of the chat template; they replace the engine's own, key by key.
    """

    chat: bool = True
    system: str | None = None
    template_options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_options(cls, options: ChatOptions, *, raw: bool = False) -> ChatFormat:
        """Return the format that a command's options ask for."""
        return cls(not raw, options.system, options.template_options)

    def encode(self, content: PromptContent, tokenizer: Tokenizer) -> list[int]:
        """Return the token ids of a text or a conversation; those of token ids are themselves.

        Raises:
            UsageError: for messages that the model's chat template does not take.
        """
        if is_token_ids(content):
            return list(cast("Sequence[int]", content))
        if isinstance(content, str) and not self.chat:
            return tokenizer.encode(content)
        return tokenizer.encode_chat(self.conversation(content), **self.template_options)

    def conversation(self, content: PromptContent) -> Conversation:
        """Return the messages of a text or a conversation, with the system message."""
        messages: Any = content
        if isinstance(content, str):
            messages = [{"role": "user", "content": content}]
        role = messages[0].get("role") if messages and isinstance(messages[0], dict) else None
        if self.system is None or role in _LEADING_ROLES:
            return [*messages]
        return [{"role": "system", "content": self.system}, *messages]

    def facts(self, tokenizer: Tokenizer | None) -> dict[str, Any]:
        """Return the format in plain types, with the options that the template has seen."""
        if not self.chat:
            return {"chat": False}
        own = tokenizer.chat_template_kwargs if tokenizer else {}
        return {
            "chat": True,
            "chat_template_kwargs": {**own, **self.template_options},
            "system": self.system,
        }


def is_token_ids(content: Any) -> bool:
    """Tell token ids from a text or a conversation."""
    return isinstance(content, Sequence) and not (
        isinstance(content, str) or (content and isinstance(content[0], Mapping))
    )


def describe_format(facts: Mapping[str, Any]) -> str:
    """Return a format in words: chat format with enable_thinking false."""
    if not facts.get("chat", True):
        return "texts as they are"
    options = facts.get("chat_template_kwargs")
    parts = []
    if isinstance(options, Mapping):
        parts = [f"{name} {_in_words(value)}" for name, value in options.items()]
    if facts.get("system"):
        parts.append("a system message")
    return "chat format" + (f" with {', '.join(parts)}" if parts else "")


def _in_words(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
