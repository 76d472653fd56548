"""Answers with grammars of the demo pair: valid, those of plain decoding, tool calls end to end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from tests.conftest import DEMO
from tests.runtime.random_schemas import random_schema
from trtllm_dflash.runtime.engine import Engine
from trtllm_dflash.runtime.text.pieces import ToolCall

pytest.importorskip("llguidance")
pytestmark = [pytest.mark.slow, pytest.mark.demo]

CITY = {
    "type": "object",
    "properties": {
        "city_name": {"type": "string", "maxLength": 20},
        "number_of_inhabitants": {"type": "integer", "minimum": 1000, "maximum": 10**8},
    },
    "required": ["city_name", "number_of_inhabitants"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tell the weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(name="engine", scope="module")
def fixture_engine() -> Iterator[Engine]:
    with Engine.load(DEMO / "cpu", num_threads=1) as engine:
        yield engine


@pytest.fixture(name="plain", scope="module")
def fixture_plain() -> Iterator[Engine]:
    with Engine.load(DEMO / "plain", num_threads=1) as engine:
        yield engine


@pytest.mark.parametrize("sampled", [False, True])
def test_drafts_change_no_answer(engine: Engine, plain: Engine, sampled: bool) -> None:
    options: dict[str, Any] = {"max_tokens": 160}
    options |= {"temperature": 0.8, "seed": 3} if sampled else {}
    for schema in (CITY, *(random_schema(seed) for seed in range(100, 106))):
        found, expected = (
            one.chat("Describe Rome.", guided_json=schema, **options)[0]
            for one in (engine, plain)
        )
        assert found.token_ids == expected.token_ids
        if found.finish_reason == "stop":
            jsonschema.validate(json.loads(found.text), schema)


def test_forced_tokens_raise_the_acceptance_length(engine: Engine) -> None:
    (found,) = engine.chat("Describe Rome.", guided_json=CITY, max_tokens=100)
    assert found.finish_reason == "stop"
    # "city_name" and "number_of_inhabitants" are nine tokens, which nobody has to guess.
    assert found.acceptance_length > 1.8


def test_a_batch_is_what_its_answers_are_alone(engine: Engine) -> None:
    prompts = ["Once upon a time", "The capital of Italy", "def main():"]
    alone = [engine.generate([prompt], max_tokens=32)[0].text for prompt in prompts]
    guided = engine.generate(["A city:"], guided_json=CITY, max_tokens=80)[0].text
    texts: dict[str, str] = dict.fromkeys([*prompts, "A city:"], "")

    def collect(prompt: str, event: Any) -> None:
        texts[prompt] += event.text

    with engine.serve() as server:
        for prompt in texts:
            options: dict[str, Any] = {"max_tokens": 32}
            if prompt == "A city:":
                options = {"max_tokens": 80, "guided_json": CITY}
            server.submit(prompt, on_event=lambda event, p=prompt: collect(p, event), **options)
        server.close(drain_seconds=120)
    assert texts == {**dict(zip(prompts, alone, strict=True)), "A city:": guided}


def test_tool_calls_end_to_end(engine: Engine) -> None:
    """The demo's template knows no tools: a system message tells of them, a grammar forces them."""
    conversation: list[dict[str, Any]] = [{"role": "user", "content": "The weather in Rome?"}]
    named = {"type": "function", "function": {"name": "weather"}}
    (answer,) = engine.chat(conversation, tools=[WEATHER], tool_choice=named, max_tokens=80)
    (call,) = answer.tool_calls
    assert isinstance(call, ToolCall)
    assert call.name == "weather"
    jsonschema.validate(json.loads(call.arguments), WEATHER["function"]["parameters"])
    assert answer.text == ""
    function = {"name": call.name, "arguments": call.arguments}
    conversation += [
        {"role": "assistant", "content": None, "tool_calls": [{"function": function}]},
        {"role": "tool", "content": "12 degrees, rain"},
    ]
    (last,) = engine.chat(conversation, tools=[WEATHER], max_tokens=40)
    assert last.text
    assert not last.tool_calls


def test_json_mode(engine: Engine) -> None:
    form = {"type": "json_object"}
    (answer,) = engine.chat("A person, in JSON.", response_format=form, max_tokens=200)
    if answer.finish_reason == "stop":
        assert isinstance(json.loads(answer.text), dict)
    assert answer.text.startswith("{")
