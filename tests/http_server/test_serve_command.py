"""The command as a user calls it, on the demo pair: the same text as `run`, and its end."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
from click.testing import CliRunner

from tests.conftest import DEMO
from tests.http_server.served import Served
from tests.patience import PATIENCE, wait_for
from trtllm_dflash.cli import main
from trtllm_dflash.runtime.engine import Engine

pytestmark = [pytest.mark.slow, pytest.mark.demo]
PROMPT = "Name three fruits."
CHAT: Any = [{"role": "user", "content": PROMPT}]


@pytest.fixture(scope="module")
def demo() -> Iterator[Served]:
    with Served(temperature=0) as server:
        yield server
        assert server.end() == 0


def test_serve_demo_is_there_within_ten_seconds() -> None:
    """On a busy machine the server's own processor time counts: on a quiet one it is as long."""
    recipe = subprocess.run(
        ["make", "-n", "serve-demo"],
        cwd=DEMO.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "dflash-trt serve demo=demo/cpu\n" in recipe.stdout
    begin = time.perf_counter()
    with Served() as server:
        assert server.get("/ready").status_code == 200
        seconds = time.perf_counter() - begin
        of_processor = server.processor_seconds()
    print(f"ready in {seconds:.1f} s, with {of_processor:.1f} s of a processor")
    assert min(seconds, of_processor) <= 10


def test_the_first_lines_say_what_to_type(demo: Served) -> None:
    curl, page = demo.next_lines(2)
    assert demo.first_line == f"serving demo at {demo.url}/v1\n"
    assert page == f"  page: {demo.url}/\n"
    assert "<title>" in demo.get("/").text
    program, address, *words = shlex.split(curl.removeprefix("  try:  "))
    assert (program, words[::2]) == ("curl", ["-H", "-d"])
    headers, data = dict([words[1].split(": ")]), words[3]
    answer = httpx.post(address, content=data, headers=headers, timeout=PATIENCE)
    assert answer.text.endswith("data: [DONE]\n\n")


def test_text_equals_that_of_run(demo: Served) -> None:
    command = [sys.executable, "-m", "trtllm_dflash", "run", str(DEMO / "cpu"), PROMPT]
    done = subprocess.run(
        [*command, "--max-tokens", "24"], capture_output=True, text=True, check=True
    )
    body = demo.post("/v1/chat/completions", messages=CHAT, max_tokens=24).json()
    assert body["choices"][0]["message"]["content"] + "\n" == done.stdout


def test_logprobs_are_those_of_the_engine(demo: Served) -> None:
    client = openai.OpenAI(base_url=f"{demo.url}/v1", api_key="none")
    answer = client.chat.completions.create(
        model="demo", messages=CHAT, max_tokens=9, logprobs=True, top_logprobs=3
    )
    with Engine.load(DEMO / "cpu") as engine:
        (expected,) = engine.chat(PROMPT, max_tokens=9, logprobs=3)
        assert expected.logprobs is not None
        content = answer.choices[0].logprobs.content
        for row, entry in zip(content, expected.logprobs, strict=True):
            assert row.logprob == pytest.approx(entry.logprob, abs=1e-4)
            assert row.token == engine.tokenizer.decode([entry.token_id])
            assert bytes(row.bytes).decode() == row.token
            assert len(row.top_logprobs) == 3
            assert row.top_logprobs[0].logprob == pytest.approx(entry.top[0][1], abs=1e-4)
    stream = client.chat.completions.create(
        model="demo", messages=CHAT, max_tokens=9, logprobs=True, stream=True
    )
    streamed = []
    for chunk in stream:
        if chunk.choices[0].logprobs:
            streamed += [row.token for row in chunk.choices[0].logprobs.content]
    assert streamed == [row.token for row in content]
    body = demo.post("/v1/completions", prompt="Once", max_tokens=4, logprobs=2).json()
    logprobs = body["choices"][0]["logprobs"]
    assert "".join(logprobs["tokens"]) == body["choices"][0]["text"]
    assert [len(top) for top in logprobs["top_logprobs"]] == [2] * 4
    assert logprobs["text_offset"][0] == 0


def test_a_second_turn_is_in_the_prefix_cache(demo: Served) -> None:
    first = demo.post("/v1/chat/completions", messages=CHAT, max_tokens=16).json()
    more = [*CHAT, first["choices"][0]["message"], {"role": "user", "content": "And two more?"}]
    second = demo.post("/v1/chat/completions", messages=more, max_tokens=4).json()
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] > 20


def test_sigterm_lets_a_stream_end() -> None:
    body = {"prompt": "Once", "max_tokens": 200, "stream": True, "ignore_eos": True}
    busy = 'slots_in_use{model="demo"} 1.0'
    with Served() as server, ThreadPoolExecutor() as pool:
        stream = pool.submit(server.post, "/v1/completions", **body)
        wait_for(lambda: stream.done() or busy in server.get("/metrics").text)
        assert not stream.done(), stream.result().text
        assert server.end() == 0
        lines = [line for line in stream.result().text.split("\n\n") if line]
        assert lines[-1] == "data: [DONE]"
        assert json.loads(lines[-2][6:])["choices"][0]["finish_reason"] == "length"
        assert "Traceback" not in server.errors()


def test_an_address_that_is_taken(demo: Served) -> None:
    port = demo.url.rpartition(":")[2]
    result = CliRunner().invoke(main, ["serve", str(DEMO / "cpu"), "--port", port])
    assert result.exit_code == 1
    assert "cannot be listened to" in result.stderr
    assert "--port 0" in result.stderr


def test_the_key_comes_from_the_environment() -> None:
    with Served(environment={"DFLASH_API_KEY": "secret"}) as server:
        assert server.get("/v1/models").status_code == 401
        headers = {"authorization": "Bearer secret"}
        assert server.get("/v1/models", headers=headers).status_code == 200
        assert "secret" not in server.first_line + server.errors()
        assert server.end() == 0


def test_two_engines_by_name() -> None:
    engines = [f"draft={DEMO / 'cpu'}", f"plain={DEMO / 'plain'}"]
    with Served(*engines, temperature=0) as server:
        texts = set()
        for name in ("draft", "plain"):
            body = server.post("/v1/completions", model=name, prompt="Once", max_tokens=12)
            texts.add(body.json()["choices"][0]["text"])
        assert len(texts) == 1
        assert server.end() == 0


def test_requests_answer_during_a_long_prompt(demo: Served) -> None:
    """The event loop is free while a prompt is made."""
    with ThreadPoolExecutor() as pool:
        long = pool.submit(demo.post, "/v1/completions", prompt="river " * 1500)
        assert httpx.get(f"{demo.url}/health", timeout=PATIENCE).status_code == 200
        assert long.result().status_code == 200
