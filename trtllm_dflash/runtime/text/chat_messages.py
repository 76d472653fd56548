"""Conversations as chat templates take them: checked, and plain data."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from trtllm_dflash.errors import UsageError
from trtllm_dflash.options.checks import shown

Message: TypeAlias = "Mapping[str, Any]"
Messages: TypeAlias = "str | Sequence[Message]"

# Names that decide what rendering is, not what a template writes.
_RESERVED = {
    *("messages", "conversation", "add_generation_prompt", "continue_final_message"),
    *("tokenize", "tokenizer_kwargs", "padding", "truncation", "max_length"),
    *("return_tensors", "return_dict", "return_assistant_tokens_mask"),
    "sanitize_control_tokens",
}


def as_messages(messages: Messages) -> list[dict[str, Any]]:
    """Return a conversation as plain data; a string is one message of the user.

    Contents that are lists of text parts become one text, their parts on lines of their own. A
    content of None is an empty text, unless the message calls tools.

    Raises:
        UsageError: for anything else than messages of text.
    """
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    if isinstance(messages, Mapping | bytes) or not isinstance(messages, Iterable):
        raise UsageError(
            f"messages is a {type(messages).__name__}, expected a text or a list of objects with"
            ' "role" and "content".'
        )
    found = [_message(message, index) for index, message in enumerate(messages)]
    if not found:
        raise UsageError("messages is empty: give at least one.")
    plain: list[dict[str, Any]] = plain_data(found, "messages")
    return plain


def check_template_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options of a chat template as plain data.

    Raises:
        UsageError: for names that are not a template's, or values that JSON does not have.
    """
    reserved = sorted(_RESERVED & options.keys())
    if reserved:
        raise UsageError(
            f"chat_template_kwargs has {reserved[0]}, which is no option of a template. Leave it"
            " out."
        )
    plain: dict[str, Any] = plain_data(dict(options), "chat_template_kwargs")
    return plain


def plain_data(value: Any, name: str) -> Any:
    """Return a value as JSON would give it back.

    Raises:
        UsageError: for what JSON does not have.
    """
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        reason = str(error)[:200] or type(error).__name__
        raise UsageError(f"{name} holds what JSON does not have: {reason}.") from error


def _message(message: Any, index: int) -> dict[str, Any]:
    where = f"messages[{index}]"
    if not isinstance(message, Mapping):
        raise UsageError(
            f"{where} is a {type(message).__name__}, expected an object with"
            ' "role" and "content".'
        )
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise UsageError(f"{where}: its role is {role!r}, expected a text such as 'user'.")
    found = dict(message)
    if "content" not in found and not found.get("tool_calls"):
        raise UsageError(
            f'{where} has no "content", expected a text; its keys are {shown(list(found))}.'
        )
    content = found.get("content")
    if content is None and not found.get("tool_calls"):
        found["content"] = ""
    elif content is not None:
        found["content"] = _content(content, where)
    return found


def _content(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise UsageError(
            f"{where}: its content is a {type(content).__name__}, expected a text or a list of text"
            " parts."
        )
    return "\n".join(
        _part(part, f"{where}, part {place}") for place, part in enumerate(content)
    )


def _part(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        raise UsageError(f"{where} is a {type(part).__name__}, expected a text part.")
    text = part.get("text")
    if part.get("type", "text") not in ("text", "input_text", "output_text"):
        raise UsageError(
            f"{where} is of type {part['type']!r}, and this model reads only text."
        )
    if not isinstance(text, str):
        raise UsageError(f'{where}: its "text" is {text!r}, expected a text.')
    return text
