"""Whatever JSON holds, the real server answers in words, or what it took it for, and goes on."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

import pytest

from tests.triton_server.client import Client
from trtllm_dflash.runtime.engine import Engine
from trtllm_dflash.triton_server.io_table import ALL_INPUTS

pytestmark = pytest.mark.slow

PLAIN: dict[str, Any] = {"text_input": "ab", "max_tokens": 2, "seed": 0}
GARBAGE: list[Any] = [
    None,
    {},
    [],
    [[]],
    "",
    "\x00",
    "NaN",
    -1,
    1e308,
    2**63,
    True,
    ["a", 1],
    [1, 2, 3],
    {"a": []},
]


def test_every_input_has_its_name(client: Client) -> None:
    url = f"http://127.0.0.1:{client.port}/v2/models/tiny/config"
    with urllib.request.urlopen(url) as response:
        config = json.load(response)
    assert [port["name"] for port in config["input"]] == list(ALL_INPUTS)


@pytest.mark.parametrize("name", ALL_INPUTS)
def test_random_values_in_an_input(name: str, client: Client, oracle: Engine) -> None:
    """Each is refused in words, or answered as what it was taken for."""
    known = answers_to_odd_values(oracle)
    for value in GARBAGE:
        reply = client.generate("tiny", **PLAIN | {name: value})
        assert reply.status in (200, 400, 500), (name, value)
        streams = name in ("stream", "streaming") and value is True
        if reply.status != 200 or streams:  # which needs generate_stream
            assert reply.error, (name, value)
            continue
        expected = known.get(f"{name}={value!r}", known["plain"])
        assert reply.text == expected, (name, value)


def answers_to_odd_values(oracle: Engine) -> dict[str, str]:
    """Return the texts of those values that mean something, and of a plain request."""
    assert oracle.tokenizer is not None
    prompts: dict[str, Any] = {
        "plain": "ab",
        "text_input='NaN'": "NaN",
        "chat=True": oracle.tokenizer.encode_chat("ab"),
    }
    for text in ("", "\x00", "NaN"):
        system = {"role": "system", "content": text}
        messages = [system, {"role": "user", "content": "ab"}]
        prompts[f"system={text!r}"] = oracle.tokenizer.encode_chat(messages)
    answers = oracle.generate(list(prompts.values()), max_tokens=2)
    texts = {name: answer.text for name, answer in zip(prompts, answers, strict=True)}
    (hot,) = oracle.generate(["ab"], max_tokens=2, temperature=2.0**63, seed=0)
    texts[f"temperature={2**63}"] = hot.text
    forms: dict[str, Any] = {"guided_regex": "NaN", "guided_choice": ["NaN"]}
    for name, form in forms.items():
        (kept_to,) = oracle.generate(["ab"], max_tokens=2, **{name: form})
        texts[f"{name}='NaN'"] = kept_to.text
    return texts


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"text_input": "\\ud800"}',
        b'{"max_tokens": 4}',
        b'{"text_input": "a", "messages": "' + b"[" * 100_000 + b'"}',
    ],
)
def test_random_bodies_are_refused(body: bytes, client: Client) -> None:
    reply = client.post("/v2/models/tiny/generate", body)
    assert reply.status in (400, 500)
    assert reply.error
    assert client.generate("tiny", **PLAIN).status == 200
