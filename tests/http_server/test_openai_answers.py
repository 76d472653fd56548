"""Calls of tools, reasoning and impossible tokens in OpenAI's form."""

from __future__ import annotations

import json
import math
from typing import Any

from tests.http_server.running import Running
from trtllm_dflash.http_server.openai_answers import ChatWriter
from trtllm_dflash.runtime.outputs import FinishInfo, RequestOutput, TokenLogprobs
from trtllm_dflash.runtime.text.pieces import ToolCall

CALLS = (ToolCall("weather", '{"city": "Rome"}'), ToolCall("clock", "{}"))
END = FinishInfo("stop", 5, 3, 1, 3, 1, 0.1, 0.2, 0.3)
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "weather"}}


def test_calls_of_tools_in_a_stream() -> None:
    writer = ChatWriter("m", 1, n=1)
    first = writer.chunk(0, RequestOutput([1], "", tool_calls=CALLS[:1]), {})
    second = writer.chunk(0, RequestOutput([2], "", END, tool_calls=CALLS[1:]), {})
    assert first is not None
    assert second is not None
    one = first["choices"][0]["delta"]["tool_calls"]
    other = second["choices"][0]["delta"]["tool_calls"]
    assert [call["index"] for call in (*one, *other)] == [0, 1]
    assert one[0]["function"] == {"name": "weather", "arguments": '{"city": "Rome"}'}
    assert one[0]["id"] != other[0]["id"]
    assert second["choices"][0]["finish_reason"] == "tool_calls"


def test_calls_of_tools_in_a_whole_answer() -> None:
    writer = ChatWriter("m", 1, n=1)
    writer.take_in(0, RequestOutput([1], "", reasoning="hm", tool_calls=CALLS))
    writer.take_in(0, RequestOutput([2], "", END))
    choice = writer.whole({})["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    assert choice["message"]["reasoning_content"] == "hm"
    names = [call["function"]["name"] for call in choice["message"]["tool_calls"]]
    assert names == ["weather", "clock"]


def test_impossible_tokens_are_numbers_in_json() -> None:
    writer = ChatWriter("m", 1, n=1)
    entry = TokenLogprobs(65, -math.inf, ((65, -math.inf), (66, -0.5)))
    chunk = writer.chunk(0, RequestOutput([65], "A", END, logprobs=[entry]), {65: "A", 66: "�"})
    assert chunk is not None
    text = json.dumps(chunk, allow_nan=False)
    (row,) = json.loads(text)["choices"][0]["logprobs"]["content"]
    assert row["logprob"] == -9999.0
    assert row["bytes"] == [65]
    assert row["top_logprobs"][1]["bytes"] is None


def test_tools_are_shown_to_the_model(server: Running) -> None:
    """This template has no tools, so a system message tells of them, which it refuses."""
    response = server.chat("hi", tools=[TOOL], max_tokens=3)
    assert "no system messages" in response.json()["error"]["message"]
    assert server.chat("hi", tools=[TOOL], tool_choice="none", max_tokens=3).status_code == 200
    response = server.chat("hi", tools=[{"type": "function"}])
    assert "tools[0]: its function is None" in response.json()["error"]["message"]
    response = server.chat("hi", tools=[TOOL], tool_choice="other")
    assert "tool_choice is 'other'" in response.json()["error"]["message"]


def test_forms_of_answers_are_checked(server: Running) -> None:
    assert server.chat("hi", response_format={"type": "text"}, max_tokens=3).status_code == 200
    for body, words in (
        ({"response_format": {"type": "xml"}}, "response_format: its type is 'xml'"),
        ({"guided_json": {"type": 5}, "guided_regex": "a"}, "Give one of them"),
    ):
        response = server.chat("hi", **body)
        assert response.status_code == 400
        assert words in response.json()["error"]["message"]
