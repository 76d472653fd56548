"""Tools in chats: from OpenAI's `tools` and `tool_choice` to a prompt, and from an answer to calls.

What a server does with them, and `Engine.chat` too:

    use = prepare_tools(messages, tools, tool_choice, tokenizer)
    ids = tokenizer.encode_chat(use.messages, **template_options, **use.template_options)
    … generate(ids, **sampling_options, **use.sampling_options)

`use.sampling_options` has `tool_calls`: chunks, outputs and generations then have `tool_calls`, a
list of `ToolCall`, each whole, and no part of it is in their text. It also has `guided_tools` where
the choice forces a call. OpenAI's finish reason is "tool_calls" for an answer with a call.

The formats:

- "harmony", gpt-oss: messages to=functions.NAME on the channel of commentary.
- "hermes", Qwen3 and others: `<tool_call>{"name": …, "arguments": {…}}</tool_call>` in the text. A
  model whose template knows no tools is told of this format by a system message.
- "json", Llama 3: the whole answer is `{"name": …, "parameters": {…}}`.

What is no call in its format stays text, unchanged.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from trtllm_dflash.options.tools import ToolChoice, ToolObject, checked_tools, chosen_tools
from trtllm_dflash.runtime.text.chat_messages import Messages, as_messages
from trtllm_dflash.runtime.text.harmony import harmony_marks
from trtllm_dflash.runtime.text.pieces import ToolCall
from trtllm_dflash.runtime.text.tokenizer import Tokenizer

ToolFormat = Literal["harmony", "hermes", "json"]

MAX_CALL_CHARACTERS = 1 << 20
_HARMONY_MODELS = frozenset({"gpt_oss"})
_BEGIN, _END = "<tool_call>", "</tool_call>"
# White space before a mark belongs to the call, so it is held back with the mark's beginning.
_HELD = re.compile(
    rf"\s*(?:{'|'.join(re.escape(_BEGIN[:n]) for n in range(1, len(_BEGIN)))})?\Z"
)


@dataclass(frozen=True)
class ToolUse:
    """What a chat with tools adds to a request.

    messages          the conversation, with a system message about the tools where the model's chat
                      template has none.
    template_options  for `Tokenizer.encode_chat`.
    sampling_options  for `SamplingParams`.
    """

    messages: list[dict[str, Any]]
    template_options: dict[str, Any] = field(default_factory=dict)
    sampling_options: dict[str, Any] = field(default_factory=dict)


def prepare_tools(
    messages: Messages,
    tools: Any,
    tool_choice: ToolChoice | None,
    tokenizer: Tokenizer,
    *,
    parallel_tool_calls: bool = True,
) -> ToolUse:
    """Return what a chat with these tools is; without tools it is the conversation alone.

    A choice of None is "auto". "none" shows the model no tools, and reads no calls.

    Raises:
        UsageError: for tools or a choice that are none, or messages that are none.
        EngineError: if the tokenizer cannot be used.
    """
    conversation = as_messages(messages)
    if tools is None or (tools == [] and tool_choice in (None, "none", "auto")):
        tools = []
    else:
        tools = checked_tools(tools)
    forced = chosen_tools(tools, tool_choice or "auto", parallel=parallel_tool_calls)
    if not tools or tool_choice == "none":
        return ToolUse(_without_calls(conversation, tokenizer))
    sampling: dict[str, Any] = {"tool_calls": True}
    if forced is not None:
        chosen, max_calls = forced
        sampling["guided_tools"] = {"tools": chosen, "max_calls": max_calls}
    if tokenizer.template_reads_tools:
        return ToolUse(conversation, {"tools": tools}, sampling)
    return ToolUse(_with_system_message(conversation, tools), {}, sampling)


def tool_format(tokenizer: Tokenizer, model_type: str) -> ToolFormat:
    """Return how a model writes calls, as its special tokens and its chat template tell."""
    if model_type in _HARMONY_MODELS and harmony_marks(tokenizer.special_tokens) is not None:
        return "harmony"
    if tokenizer.template_reads_tools and not tokenizer.template_writes(_BEGIN):
        return "json"
    return "hermes"


def whole_call(name: str, arguments: str) -> ToolCall | None:
    """Return a call whose arguments are a JSON object, as they are written; else None."""
    if len(arguments) > MAX_CALL_CHARACTERS:
        return None
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return None
    return ToolCall(name, arguments) if isinstance(value, dict) else None


class ToolCallFilter:
    """Takes the calls out of a text as it comes.

    What may be the beginning of a call is held back, and so is a call until it is whole.
    """

    def __init__(self, form: ToolFormat) -> None:
        """Take the format, "hermes" or "json"."""
        self._is_json = form == "json"
        self._held = ""
        self._is_open = False  # inside of <tool_call>
        self._is_plain = False  # the answer is no call as a whole
        self._gap = ""  # the white space before it
        self._after_call = False

    def push(self, text: str) -> tuple[str, list[ToolCall]]:
        """Return what is text for sure, and the calls that are whole now."""
        self._held += text
        if self._is_json:
            return self._push_json()
        shown, calls = "", list[ToolCall]()
        while True:
            if self._is_open:
                inside, found, rest = self._held.partition(_END)
                if not found and len(inside) <= MAX_CALL_CHARACTERS:
                    return shown, calls
                shown += self._close(inside, found, calls)
                self._held = rest
                continue
            before, found, rest = self._held.partition(_BEGIN)
            if not found:
                return shown + self._release(), calls
            written = before.rstrip()
            shown += written
            self._gap = before[len(written) :]
            self._held, self._is_open = rest, True

    def finish(self) -> tuple[str, list[ToolCall]]:
        """Return the rest; a call whose end mark did not come counts if it is whole."""
        held, self._held = self._held, ""
        if self._is_json and not self._is_plain:
            calls = _json_calls(held)
            return ("", calls) if calls else (held, [])
        if not self._is_open:
            return ("", []) if self._after_call and not held.strip() else (held, [])
        call = _parsed(held)
        return ("", [call]) if call is not None else (self._gap + _BEGIN + held, [])

    def _close(self, inside: str, mark: str, calls: list[ToolCall]) -> str:
        """Take what stood inside of the marks; returns it if it is no call."""
        self._is_open = self._after_call = False
        call = _parsed(inside) if mark else None
        if call is None:
            return self._gap + _BEGIN + inside + mark
        calls.append(call)
        self._after_call = True
        return ""

    def _release(self) -> str:
        """Return what can be no part of a call, and hold the rest."""
        match = _HELD.search(self._held)
        place = match.start() if match else len(self._held)
        shown, self._held = self._held[:place], self._held[place:]
        if shown and self._after_call:
            self._after_call = False
        return shown

    def _push_json(self) -> tuple[str, list[ToolCall]]:
        begun = self._held.lstrip()
        if self._is_plain or (begun and begun[0] != "{") or len(begun) > MAX_CALL_CHARACTERS:
            self._is_plain = True
            shown, self._held = self._held, ""
            return shown, []
        return "", []


def _parsed(text: str) -> ToolCall | None:
    """Return the call that a text is as a whole, None for anything else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return _call_of(value)


def _call_of(value: Any) -> ToolCall | None:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return None
    if not isinstance(arguments, dict) or not value["name"]:
        return None
    return ToolCall(value["name"], json.dumps(arguments, ensure_ascii=False))


def _json_calls(text: str) -> list[ToolCall]:
    """Return the calls of a text that is nothing else, with white space or ; between them."""
    decoder = json.JSONDecoder()
    place = 0
    calls: list[ToolCall] = []
    while place < len(text):
        if text[place].isspace() or (text[place] == ";" and calls):
            place += 1
            continue
        try:
            value, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            return []
        call = _call_of(value)
        if call is None:
            return []
        calls.append(call)
    return calls


def _with_system_message(
    conversation: list[dict[str, Any]], tools: Sequence[ToolObject]
) -> list[dict[str, Any]]:
    """Return a conversation that tells the model of the tools, and how it calls them.

    Calls and results of earlier turns become texts: the template may know neither.
    """
    functions = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    text = (
        "You can call these functions, each described by a JSON object:\n"
        f"{functions}\n"
        "To call one, answer with its name and arguments as JSON between these marks:\n"
        f'{_BEGIN}\n{{"name": "NAME", "arguments": {{}}}}\n{_END}'
    )
    plain = [_plain_message(message) for message in conversation]
    if plain and plain[0]["role"] in ("system", "developer"):
        first = {**plain[0], "content": f"{plain[0]['content']}\n\n{text}"}
        return [first, *plain[1:]]
    return [{"role": "system", "content": text}, *plain]


def _without_calls(
    conversation: list[dict[str, Any]], tokenizer: Tokenizer
) -> list[dict[str, Any]]:
    """Return a conversation whose earlier calls and results the template can read."""
    has_calls = any(
        message["role"] == "tool" or message.get("tool_calls") for message in conversation
    )
    if not has_calls or tokenizer.template_reads_tools:
        return conversation
    return [_plain_message(message) for message in conversation]


def _plain_message(message: dict[str, Any]) -> dict[str, Any]:
    content = message.get("content") or ""
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{content}\n</tool_response>"}
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return {**message, "content": content}
    written = []
    for call in calls:
        function = call.get("function", call) if isinstance(call, dict) else {}
        written.append(f"{_BEGIN}\n{_call_text(function)}\n{_END}")
    lines = [content, *written] if content else written
    return {"role": message["role"], "content": "\n".join(lines)}


def _call_text(function: Any) -> str:
    call = _call_of(function)
    if call is None:
        return json.dumps(function, ensure_ascii=False)
    return f'{{"name": {json.dumps(call.name)}, "arguments": {call.arguments}}}'
