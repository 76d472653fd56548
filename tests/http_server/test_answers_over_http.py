"""Whole answers and streams: those of `Engine.generate`, in OpenAI's form."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest

from tests.http_server.conftest import MakeEngine
from tests.http_server.running import Running

SAMPLED: dict[str, Any] = {"temperature": 0.9, "seed": 7, "max_tokens": 20}
CHAT: Any = [{"role": "user", "content": "hi"}]


def events_of(response: httpx.Response) -> list[Any]:
    """Return the data of a stream's events, but for the last one, which ends it."""
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in response.text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


@pytest.mark.parametrize("n", [1, 3])
def test_completion_equals_generate(server: Running, byte_engine: MakeEngine, n: int) -> None:
    prompts = ["ab", "c"]
    expected = byte_engine().generate(prompts, n=n, **SAMPLED)
    body = server.complete(prompts, n=n, **SAMPLED).json()
    texts = [choice["text"] for choice in body["choices"]]
    assert texts == [answer.text for answer in expected]
    assert [choice["finish_reason"] for choice in body["choices"]] == [
        answer.finish_reason for answer in expected
    ]
    usage = body["usage"]
    assert usage["prompt_tokens"] == 3
    assert usage["completion_tokens"] == sum(len(answer.token_ids) for answer in expected)
    assert usage["total_tokens"] == 3 + usage["completion_tokens"]
    assert body["dflash"]["seeds"] == [answer.seed for answer in expected]
    steps = [length for answer in expected for length in answer.acceptance_lengths]
    assert body["dflash"]["acceptance_histogram"] == [
        steps.count(length) for length in range(1, max(steps) + 1)
    ]


def test_chat_equals_engine_chat(server: Running, byte_engine: MakeEngine) -> None:
    (expected,) = byte_engine().chat("hi", **SAMPLED)
    body = server.chat("hi", **SAMPLED).json()
    assert body["choices"][0]["message"] == {"role": "assistant", "content": expected.text}
    assert body["object"] == "chat.completion"


def test_a_stream_joins_to_the_whole_answer(server: Running) -> None:
    whole = server.chat("hi", n=2, **SAMPLED).json()
    body = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = events_of(server.chat("hi", n=2, **SAMPLED, **body))
    for choice in whole["choices"]:
        deltas = [
            chunk["choices"][0]
            for chunk in chunks
            if chunk["choices"][0]["index"] == choice["index"]
        ]
        text = "".join(delta["delta"].get("content", "") for delta in deltas)
        assert text == choice["message"]["content"]
        assert [delta["finish_reason"] for delta in deltas[:-1]] == [None] * (len(deltas) - 1)
        assert deltas[-1]["finish_reason"] == choice["finish_reason"]
        assert deltas[0]["delta"]["role"] == "assistant"
    assert last["choices"] == []
    assert last["usage"] == whole["usage"]
    assert all(chunk["usage"] is None for chunk in chunks)
    assert len({chunk["id"] for chunk in (*chunks, last)}) == 1


def test_chunks_say_where_each_token_came_from(server: Running) -> None:
    body = {"stream": True, "dflash": {"tokens": True}, "max_tokens": 40, "ignore_eos": True}
    usage = {"stream_options": {"include_usage": True}}
    *chunks, last = events_of(server.chat("hi", **body, **usage))
    lengths, sources = [], []
    for chunk in chunks:
        tokens = chunk["dflash"]["tokens"]
        text = "".join(token["text"] for token in tokens)
        assert text == chunk["choices"][0]["delta"].get("content", "")
        sources += [token["source"] for token in tokens]
        if chunk["dflash"]["acceptance"] is not None:
            lengths.append(chunk["dflash"]["acceptance"])
    assert len(sources) == last["usage"]["completion_tokens"]
    assert sources[0] == "target"
    drafts = last["dflash"]["drafts"]
    accepted = sum(count["accepted"] for count in drafts.values())
    # The last step was cut at max_tokens: of a cut step, the last token counts as no draft.
    assert accepted <= len(sources) - sources.count("target") <= accepted + 1
    histogram = [lengths.count(length) for length in range(1, max(lengths) + 1)]
    assert histogram == last["dflash"]["acceptance_histogram"]


def test_no_drafts_no_draft_tokens(server: Running) -> None:
    body = {"stream": True, "dflash": {"tokens": True}, "draft": False, "max_tokens": 9}
    for chunk in events_of(server.complete("ab", **body)):
        assert {token["source"] for token in chunk["dflash"]["tokens"]} == {"target"}
        assert chunk["dflash"]["acceptance"] in (None, 1)


def test_stop_words_end_an_answer(server: Running) -> None:
    whole = server.complete("ab", max_tokens=40, ignore_eos=True).json()["choices"][0]["text"]
    word = whole[3:5]
    body = server.complete("ab", max_tokens=40, ignore_eos=True, stop=word).json()
    assert body["choices"][0]["text"] == whole[: whole.index(word)]
    assert body["choices"][0]["finish_reason"] == "stop"


def test_echo_puts_the_prompt_first(server: Running) -> None:
    plain = server.complete(["ab", "c"], max_tokens=5).json()["choices"]
    echoed = server.complete(["ab", "c"], max_tokens=5, echo=True).json()["choices"]
    assert [choice["text"] for choice in echoed] == [
        prompt + choice["text"] for prompt, choice in zip(["ab", "c"], plain, strict=True)
    ]
    streamed = ["", ""]
    for event in events_of(server.complete(["ab", "c"], max_tokens=5, echo=True, stream=True)):
        streamed[event["choices"][0]["index"]] += event["choices"][0]["text"]
    assert streamed == [choice["text"] for choice in echoed]


def test_token_ids_are_a_prompt(server: Running) -> None:
    text = server.complete("ab", max_tokens=5).json()["choices"][0]["text"]
    for prompt in ([97, 98], [[97, 98]]):
        body = server.complete(prompt, max_tokens=5).json()
        assert body["choices"][0]["text"] == text


def test_what_a_request_does_not_say_is_the_models(byte_engine: MakeEngine) -> None:
    """The checkpoint's own sampling, as vLLM takes it; `--temperature` replaces its temperature."""
    own = {"temperature": 0.6, "top_k": 3, "repetition_penalty": 1.5}
    asked: dict[str, Any] = {"max_tokens": 40}
    engine = byte_engine()
    expected = {
        name: byte_engine().generate("ab", **asked, **options)[0].text
        for name, options in (
            ("own", own | {"seed": 7}),
            ("temperature", own | {"temperature": 1.2, "seed": 7}),
            ("greedy", {"repetition_penalty": 1.5}),
            ("none", {"temperature": 1.0, "seed": 7}),
        )
    }
    assert len(set(expected.values())) == 4
    engine.config = replace(engine.config, generation_defaults=own)
    with Running({"tiny": engine}, temperature=None) as server:

        def text(**options: Any) -> str:
            response = server.complete("ab", seed=7, **asked, **options)
            return str(response.json()["choices"][0]["text"])

        assert text() == text(temperature=0.6, top_k=3) == expected["own"]
        assert text(temperature=1.2) == expected["temperature"]
        assert text(temperature=0) == expected["greedy"]
        row = server.client.get("/v1/models/tiny").json()
        assert row["dflash"]["defaults"] == own
    for options, name in (
        ({"temperature": 1.2}, "temperature"),
        ({"temperature": None, "follows_checkpoint": False}, "none"),
    ):
        other = byte_engine()
        other.config = engine.config
        with Running({"tiny": other}, **options) as server:
            assert text() == expected[name]


def test_the_openai_client_sync(server: Running) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    assert [model.id for model in client.models.list()] == ["tiny"]
    answer = client.chat.completions.create(model="tiny", messages=CHAT, **SAMPLED)
    stream = client.chat.completions.create(
        model="tiny",
        messages=[*CHAT],
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"dflash": {"tokens": True}},
        **SAMPLED,
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == answer.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == answer.usage.completion_tokens
    again = [{"role": "user", "content": "hi"}, answer.choices[0].message.model_dump()]
    more = client.chat.completions.create(
        model="tiny", messages=[*again, *CHAT], max_completion_tokens=3
    )
    assert more.usage.completion_tokens <= 3
    with pytest.raises(openai.NotFoundError, match="there is no model 'other' here"):
        client.chat.completions.create(model="other", messages=CHAT)
    with pytest.raises(openai.BadRequestError, match="unknown field 'tempratur'"):
        client.chat.completions.create(model="tiny", messages=CHAT, extra_body={"tempratur": 1})


def test_the_openai_client_async(server: Running) -> None:
    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:

            async def one(seed: int) -> str:
                stream = await client.completions.create(
                    model="tiny", prompt="ab", seed=seed, temperature=1.0, stream=True
                )
                return "".join([chunk.choices[0].text async for chunk in stream])

            return await asyncio.gather(*(one(seed) for seed in range(12)))

    texts = asyncio.run(ask())
    for seed, text in enumerate(texts):
        body = server.complete("ab", seed=seed, temperature=1.0).json()
        assert body["choices"][0]["text"] == text
