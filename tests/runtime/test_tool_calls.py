"""Calls of tools in answers: found in any steps, whole, and nothing else is one."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runtime import tiny_tokenizer as tiny
from tests.runtime.test_harmony import GENERATION_PROMPT, ID_OF, SPECIAL, decode, ids
from trtllm_dflash.errors import UsageError
from trtllm_dflash.runtime.text.answer_text import AnswerText
from trtllm_dflash.runtime.text.harmony import HarmonyReader, harmony_marks
from trtllm_dflash.runtime.text.pieces import ToolCall
from trtllm_dflash.runtime.text.tokenizer import Tokenizer
from trtllm_dflash.runtime.text.tool_calls import (
    MAX_CALL_CHARACTERS,
    ToolCallFilter,
    ToolFormat,
    prepare_tools,
    tool_format,
)

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tell the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'
KOELN = ToolCall("weather", '{"city": "Köln"}')


def take(
    text: str, form: ToolFormat = "hermes", places: list[int] | None = None
) -> tuple[str, list[ToolCall]]:
    """Return text and calls of an answer that comes in parts, split at these places."""
    taken = ToolCallFilter(form)
    shown, calls = "", []
    bounds = [0, *sorted(places or []), len(text)]
    for begin, end in pairwise(bounds):
        more, found = taken.push(text[begin:end])
        shown += more
        calls += found
    more, found = taken.finish()
    return shown + more, calls + found


@pytest.mark.parametrize(
    ("text", "shown", "calls"),
    [
        (CALL, "", [KOELN]),
        (f"I look it up.\n{CALL}", "I look it up.", [KOELN]),
        (f"{CALL}\n{CALL}\n", "", [KOELN, KOELN]),
        (f"{CALL}\nDone.", "\nDone.", [KOELN]),
        (CALL.removesuffix("\n</tool_call>"), "", [KOELN]),
        ('<tool_call>{"name": "clock"}</tool_call>', "", [ToolCall("clock", "{}")]),
        ("a < b and <tool> and <tool_cal", "a < b and <tool> and <tool_cal", []),
        ("<tool_call>clock()</tool_call>", "<tool_call>clock()</tool_call>", []),
        ('<tool_call>{"name": 3}</tool_call>', '<tool_call>{"name": 3}</tool_call>', []),
        ("<tool_call>" + "[" * 99_999, "<tool_call>" + "[" * 99_999, []),
        ("text  \n", "text  \n", []),
    ],
)
def test_hermes_calls_are_taken_out(text: str, shown: str, calls: list[ToolCall]) -> None:
    assert take(text) == (shown, calls)
    assert take(text, places=list(range(1, min(len(text), 300)))) == (shown, calls)


@pytest.mark.parametrize(
    ("text", "shown", "calls"),
    [
        (
            ' {"name": "weather", "parameters": {"city": "Rome"}}',
            "",
            [("weather", '{"city": "Rome"}')],
        ),
        ('{"name": "clock"}; {"name": "clock"}', "", [("clock", "{}"), ("clock", "{}")]),
        ('{"city": "Rome"}', '{"city": "Rome"}', []),
        ('{"name": "clock"} is it', '{"name": "clock"} is it', []),
        ("It rains.", "It rains.", []),
    ],
)
def test_json_answers_are_calls_as_a_whole(
    text: str, shown: str, calls: list[ToolCall]
) -> None:
    assert take(text, "json") == (shown, calls)
    assert take(text, "json", list(range(1, len(text)))) == (shown, calls)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from([CALL, "<tool", "_call>", "</tool_call>", "\n ", "{x", "Hi"])),
    st.lists(st.integers(0, 400)),
)
def test_calls_are_the_same_in_any_parts(parts: list[str], places: list[int]) -> None:
    text = "".join(parts)
    assert take(text, places=[place for place in places if place <= len(text)]) == take(text)


def test_a_call_without_end_is_text_at_a_limit() -> None:
    taken = ToolCallFilter("hermes")
    text = "<tool_call>" + "x" * (MAX_CALL_CHARACTERS + 1)
    assert taken.push(text) == (text, [])


HARMONY_CALL = (
    "<|channel|>analysis<|message|>Look it up.<|end|><|start|>assistant<|channel|>commentary"
    ' to=functions.weather <|constrain|>json<|message|>{"city": "Rom"}<|call|>'
)


@pytest.mark.parametrize(
    ("answer", "reasoning", "calls"),
    [
        (HARMONY_CALL, "Look it up.", [("weather", '{"city": "Rom"}')]),
        (
            " to=functions.clock<|channel|>commentary json<|message|>{}<|call|>",
            "",
            [("clock", "{}")],
        ),
        ("<|channel|>commentary to=functions.clock<|message|>{}", "", [("clock", "{}")]),
        ("<|channel|>commentary to=functions.clock<|message|>{", "{", []),
        ("<|channel|>commentary<|message|>So.<|end|>", "So.", []),
        ("<|channel|>commentary to=browser.open<|message|>{}<|call|>", "{}", []),
    ],
)
def test_harmony_calls_are_messages(answer: str, reasoning: str, calls: list[ToolCall]) -> None:
    for width in (1, 2, 5, 400):
        found = _harmony(answer, width, reads_calls=True)
        assert (found.text, found.reasoning, found.tool_calls) == ("", reasoning, calls)


def test_harmony_calls_stay_reasoning_unasked() -> None:
    found = _harmony(HARMONY_CALL, 3, reads_calls=False)
    assert found.reasoning == 'Look it up.\n{"city": "Rom"}'
    assert not found.tool_calls


def _harmony(answer: str, width: int, *, reads_calls: bool) -> AnswerText:
    marks = harmony_marks(ID_OF)
    assert marks is not None
    reader = HarmonyReader(
        decode, SPECIAL, marks, ids(GENERATION_PROMPT), reads_calls=reads_calls
    )
    text = AnswerText(reader, call_format="harmony" if reads_calls else None)
    tokens = ids(answer)
    for begin in range(0, len(tokens), width):
        text.push(tokens[begin : begin + width])
    text.finish()
    return text


@pytest.fixture(name="tokenizers", scope="module")
def fixture_tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    """Return tokenizers whose templates know no tools, take them, and write <tool_call>."""
    root = tmp_path_factory.mktemp("tokenizers")
    found = {"none": Tokenizer(tiny.write_byte_level(root / "none"))}
    for name, words in {"json": "{{ tools }}", "hermes": "{{ tools }}<tool_call>"}.items():
        directory = tiny.write_byte_level(root / name)
        _extend_template(directory, words)
        found[name] = Tokenizer(directory)
    return found


def _extend_template(directory: Path, words: str) -> None:
    path = directory / "tokenizer_config.json"
    config = json.loads(path.read_text("utf-8"))
    config["chat_template"] += words
    path.write_text(json.dumps(config), "utf-8")


def test_format_is_that_of_the_template(tokenizers: dict[str, Tokenizer]) -> None:
    formats = {name: tool_format(tokenizer, "qwen3") for name, tokenizer in tokenizers.items()}
    assert formats == {"none": "hermes", "json": "json", "hermes": "hermes"}


def test_tools_go_to_the_template(tokenizers: dict[str, Tokenizer]) -> None:
    use = prepare_tools("Hi", [WEATHER, CLOCK], None, tokenizers["hermes"])
    names = [tool["function"]["name"] for tool in use.template_options["tools"]]
    assert names == ["weather", "clock"]
    assert use.sampling_options == {"tool_calls": True}
    text = tokenizers["hermes"].encode_chat(use.messages, **use.template_options)
    assert b"weather" in bytes(token for token in text if token < 256)


def test_tools_are_told_where_the_template_has_none(tokenizers: dict[str, Tokenizer]) -> None:
    conversation = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Rain?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"function": {"name": "weather", "arguments": '{"city": "Rom"}'}}],
        },
        {"role": "tool", "content": "no"},
    ]
    use = prepare_tools(conversation, [WEATHER], "auto", tokenizers["none"])
    assert use.template_options == {}
    contents = [message["content"] for message in use.messages]
    assert contents[0].startswith("Be kind.\n\n")
    assert '"name": "weather"' in contents[0]
    assert take(contents[2]) == ("", [ToolCall("weather", '{"city": "Rom"}')])
    assert contents[3] == "<tool_response>\nno\n</tool_response>"


@pytest.mark.parametrize("choice", [None, "none"])
def test_calls_of_before_are_readable_without_tools(
    tokenizers: dict[str, Tokenizer], choice: str | None
) -> None:
    conversation: Any = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "tool_calls": [{"function": {"name": "clock", "arguments": {}}}]},
        {"role": "tool", "content": "noon"},
    ]
    use = prepare_tools(conversation, None, choice, tokenizers["none"])
    assert [message["role"] for message in use.messages] == ["user", "assistant", "user"]
    assert "clock" in use.messages[1]["content"]
    assert "noon" in use.messages[2]["content"]
    kept = prepare_tools(conversation, None, choice, tokenizers["hermes"])
    assert [message["role"] for message in kept.messages] == ["user", "assistant", "tool"]


def test_a_choice_forces_a_call(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["hermes"]
    named = {"type": "function", "function": {"name": "clock"}}
    use = prepare_tools("Hi", [WEATHER, CLOCK], named, tokenizer)
    guided = use.sampling_options["guided_tools"]
    assert [tool["function"]["name"] for tool in guided["tools"]] == ["clock"]
    assert guided["max_calls"] == 1
    use = prepare_tools("Hi", [WEATHER, CLOCK], "required", tokenizer)
    assert len(use.sampling_options["guided_tools"]["tools"]) == 2
    assert prepare_tools("Hi", [WEATHER], "none", tokenizer).sampling_options == {}
    assert prepare_tools("Hi", None, None, tokenizer).sampling_options == {}


@pytest.mark.parametrize(
    ("tools", "choice", "words"),
    [
        ("weather", None, "tools is 'weather', expected a list of"),
        ([], "required", "tools holds no entries, expected 1 to 128"),
        ([CLOCK] * 129, None, "tools holds more than 128 entries"),
        ([CLOCK, CLOCK], None, "tools has the name 'clock' twice"),
        ([{"type": "code"}], None, r"tools\[0\]: its type is 'code', and only functions"),
        ([{"function": {"name": "a b"}}], None, r"tools\[0\]: its name is 'a b', expected"),
        ([{"function": {"name": "a", "x": 1}}], None, "has the unknown key 'x'; it takes"),
        ([{"function": {"name": "a", "parameters": []}}], None, r"its parameters are \[\]"),
        ([CLOCK], "weather", "tool_choice is 'weather', expected none, auto, required"),
        ([CLOCK], {"type": "function"}, "and the tools are: clock"),
        ([{"function": {"name": "a", "description": "x" * 300_000}}], None, "characters as"),
        ([{"function": {"name": "a", "parameters": {1: {2}}}}], None, "what JSON does not"),
    ],
)
def test_bad_tools_are_refused(
    tokenizers: dict[str, Tokenizer], tools: Any, choice: Any, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        prepare_tools("Hi", tools, choice, tokenizers["hermes"])


def test_deep_tools_are_refused(tokenizers: dict[str, Tokenizer]) -> None:
    schema: dict[str, Any] = {}
    for _ in range(200):
        schema = {"properties": {"a": schema}}
    deep = [{"function": {"name": "a", "parameters": schema}}]
    with pytest.raises(UsageError, match="tools is nested more than 64 levels deep"):
        prepare_tools("Hi", deep, None, tokenizers["hermes"])
