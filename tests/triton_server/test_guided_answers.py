"""Grammars and tools on the real server."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.triton_server.client import Client
from trtllm_dflash.runtime.engine import Engine

pytest.importorskip("llguidance")
pytestmark = pytest.mark.slow

PROMPT = "The quick brown fox"
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = json.dumps([{"type": "function", "function": {"name": "weather", "parameters": CITY}}])


@pytest.mark.parametrize(
    "guide",
    [
        {"guided_regex": "[a-z]{3,9}-[0-9]+"},
        {"guided_json": json.dumps(CITY)},
        {"guided_choice": ["one", "two", "three"]},
        {"guided_grammar": 'start: "<" start? ">"'},
        {"response_format": '{"type": "json_object"}'},
    ],
    ids=lambda guide: next(iter(guide)),
)
def test_guided_answers_are_those_of_python(
    client: Client, oracle: Engine, guide: dict[str, Any]
) -> None:
    (expected,) = oracle.generate([PROMPT], max_tokens=30, **guide)
    for reply in (
        client.generate("tiny", text_input=PROMPT, max_tokens=30, **guide),
        client.stream("tiny", text_input=PROMPT, max_tokens=30, **guide),
    ):
        assert reply.text == expected.text
        assert reply.last["finish_reason"] == expected.finish_reason


@pytest.mark.demo
def test_tools_are_called(client: Client) -> None:
    """The demo's template knows no tools, and a grammar forces the call."""
    assert client.load("demo").status == 200
    try:
        _call_tools(client)
    finally:
        client.unload("demo")


def _call_tools(client: Client) -> None:
    inputs = {"text_input": "Hi", "chat": True, "tools": TOOLS, "max_tokens": 100}
    choice = json.dumps({"type": "function", "function": {"name": "weather"}})
    for reply in (
        client.generate("demo", tool_choice=choice, **inputs),
        client.stream("demo", tool_choice=choice, **inputs),
    ):
        assert reply.text == ""
        (call,) = json.loads(reply.last["tool_calls"])
        assert call["name"] == "weather"
        assert json.loads(call["arguments"]).keys() == {"city"}
    assert "tool_calls" not in client.generate("demo", **inputs).last


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"guided_regex": "["}, "the regular expression cannot be used"),
        ({"guided_json": '{"not": {}}'}, "the JSON schema cannot be used"),
        ({"tools": TOOLS}, "tools is for chats"),
    ],
)
def test_bad_guides_are_told(client: Client, inputs: dict[str, Any], words: str) -> None:
    reply = client.generate("tiny", text_input=PROMPT, **inputs)
    assert reply.status == 400
    assert words in reply.error
