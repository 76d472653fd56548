"""What agents do, with OpenAI's client on the demo pair: JSON of a schema, and loops of tool calls.

The demo's model is small: what it writes is forced by grammars, and checked for its form.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.conftest import DEMO
from tests.http_server.served import Served
from trtllm_dflash.runtime.engine import Engine

pytestmark = [pytest.mark.slow, pytest.mark.demo]
CHAT: Any = [{"role": "user", "content": "What is the weather in Rome and in Oslo?"}]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "count"],
    "additionalProperties": False,
}
CITIES = ["Rome", "Oslo", "Lima"]
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "the weather of a city",
            "parameters": {
                "type": "object",
                "properties": {"city": {"enum": CITIES}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
]


@pytest.fixture(scope="module")
def client() -> Iterator[openai.OpenAI]:
    with Served(temperature=0) as server:
        yield openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        assert server.end() == 0
        assert "Traceback" not in server.errors()


def test_json_of_a_schema(client: openai.OpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "thing", "schema": SCHEMA}}
    answer = client.chat.completions.create(
        model="demo", messages=CHAT, response_format=form, max_tokens=60
    )
    value = json.loads(answer.choices[0].message.content)
    assert value.keys() == {"name", "count"}
    assert 0 <= value["count"] <= 99
    with Engine.load(DEMO / "cpu") as engine:
        (expected,) = engine.chat(CHAT, response_format=form, max_tokens=60)
    assert answer.choices[0].message.content == expected.text


def test_an_agent_loop_of_several_calls(client: openai.OpenAI) -> None:
    messages = list(CHAT)
    for turn in range(3):
        answer = client.chat.completions.create(
            model="demo",
            messages=messages,
            tools=TOOLS,
            tool_choice="required",
            parallel_tool_calls=False,
            max_tokens=60,
        )
        choice = answer.choices[0]
        assert choice.finish_reason == "tool_calls"
        (call,) = choice.message.tool_calls
        assert call.function.name == "weather"
        assert json.loads(call.function.arguments)["city"] in CITIES
        messages.append(choice.message)
        result = {"role": "tool", "tool_call_id": call.id, "content": f"{turn} degrees"}
        messages.append(result)
    last = client.chat.completions.create(
        model="demo", messages=messages, tools=TOOLS, tool_choice="none", max_tokens=8
    )
    assert last.choices[0].message.tool_calls is None


def test_calls_in_a_stream_are_those_of_the_whole_answer(client: openai.OpenAI) -> None:
    wish: Any = {
        "model": "demo",
        "messages": CHAT,
        "tools": TOOLS,
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
        "max_tokens": 60,
    }
    whole = client.chat.completions.create(**wish).choices[0]
    (expected,) = whole.message.tool_calls
    calls, reasons = [], []
    for chunk in client.chat.completions.create(stream=True, **wish):
        calls += chunk.choices[0].delta.tool_calls or []
        reasons.append(chunk.choices[0].finish_reason)
    (call,) = calls
    assert call.function.arguments == expected.function.arguments
    assert call.function.name == expected.function.name
    assert reasons[-1] == whole.finish_reason == "tool_calls"


def test_penalties_and_biases_are_those_of_the_engine(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"presence_penalty": 1.5, "frequency_penalty": 0.5}
    text = client.completions.create(
        model="demo", prompt="one one one", max_tokens=24, **options
    )
    with Engine.load(DEMO / "cpu") as engine:
        (expected,) = engine.generate("one one one", max_tokens=24, **options)
        (plain,) = engine.generate("one one one", max_tokens=24)
        assert text.choices[0].text == expected.text != plain.text
        banned = expected.token_ids[0]
        biased = client.completions.create(
            model="demo",
            prompt="one one one",
            max_tokens=24,
            logit_bias={str(banned): -100},
        )
        (other,) = engine.generate("one one one", max_tokens=24, logit_bias={banned: -100})
    assert biased.choices[0].text == other.text
