"""What the server refuses: in OpenAI's form, with the right status, in words, without a path."""

from __future__ import annotations

import gzip
import json
import socket
import threading
from typing import Any

import httpx
import pytest

from tests.http_server.conftest import MakeEngine
from tests.http_server.running import Running
from tests.patience import wait_for
from tests.runtime.callers import Gate

LONG: dict[str, Any] = {"max_tokens": 80, "ignore_eos": True}


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    """Check an error's form, and return it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert body.keys() == {"error"}
    error: dict[str, Any] = body["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"]
    assert "/tmp" not in response.text
    assert "Traceback" not in response.text
    return error


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("temprature", 1, "unknown field 'temprature'; did you mean temperature?"),
        ("temperature", "1", "temperature is '1', expected a number"),
        ("temperature", -1, "temperature is -1, expected at least 0"),
        ("top_p", 0, "top_p is 0, expected more than 0"),
        ("n", 0, "n is 0, expected at least 1"),
        ("n", True, "n is True, expected an integer"),
        ("max_tokens", 1.5, "max_tokens is 1.5, expected an integer"),
        ("stop", 5, "stop is 5, expected a text or a list"),
        ("stop", [""], "stop[0] is '', expected at least 1 characters"),
        ("stream", "yes", "stream is 'yes', expected true or false"),
        ("stream_options", {"include": True}, "unknown field 'stream_options.include'"),
        ("messages", [], "messages is [], expected at least 1 entries"),
        ("messages", [{"role": 5, "content": "x"}], "messages[0].role is 5, expected a text"),
        ("messages", [{"role": "user"}], "messages[0]"),
        ("messages", [{"role": "system", "content": "x"}], "no system messages"),
        (
            "messages",
            [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
            "this model reads only text",
        ),
        ("messages", [{"role": "user", "content": "x" * 160}], "a prompt of this model has"),
        ("min_tokens", 200, "min_tokens is 200, more than max_tokens"),
        ("draft_len", 9, "draft_len is 9, and this engine takes 0 to 3"),
        ("logprobs", True, "logprobs needs the engine's logits"),
        ("top_logprobs", 2, "top_logprobs needs logprobs"),
        ("presence_penalty", 101, "presence_penalty is 101.0, expected a number from -100 to"),
        ("logit_bias", {"5": 101}, "logit_bias of token 5 is 101.0, expected a number from"),
        ("max_completion_tokens", 3, "not both"),
        ("reasoning_effort", "low", "has no option 'enable_thinking'"),
        ("chat_template_kwargs", {"wrong": 1}, "has no option 'wrong'"),
        ("stop", "\ud800", "expected a text without half a surrogate pair"),
        ("model", "other", "there is no model 'other' here"),
    ],
)
def test_bad_fields(server: Running, field: str, value: Any, words: str) -> None:
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 5,
        field: value,
    }
    content = json.dumps(body).encode()
    response = server.client.post(
        "/v1/chat/completions", content=content, headers={"content-type": "application/json"}
    )
    error = error_of(response, 404 if field == "model" else 400)
    assert words in error["message"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "the body is not JSON"),
        (b"", "the body is missing"),
        (b"[]", "the body is [], expected an object"),
        (b'{"model": "tiny", "n": 1, "n": 2}', "an object has the key 'n' twice"),
        (b'{"model": "tiny", "a": [{"b": {"c": 1, "c": 1}}]}', "the key 'c' twice"),
        (b"\xff\xfe", "the body is not JSON"),
        (b"[" * 100_000, "the body is no JSON that can be read"),
        (b'{"n": ' + b"9" * 5000 + b"}", "the body is no JSON that can be read"),
        (
            b'{"model": "tiny", "temperature": NaN}',
            "temperature is nan, expected a finite number",
        ),
    ],
)
def test_bad_bodies(server: Running, content: bytes, words: str) -> None:
    headers = {"content-type": "application/json"}
    response = server.client.post("/v1/chat/completions", content=content, headers=headers)
    assert words in error_of(response, 400)["message"]


def test_other_content_types_are_refused(server: Running) -> None:
    """A web page can send them to any server without asking it first."""
    body = json.dumps({"model": "tiny", "prompt": "ab"}).encode()
    headers = {"content-type": "text/plain"}
    response = server.client.post("/v1/completions", content=body, headers=headers)
    error_of(response, 400)


def test_compressed_bodies_are_refused(server: Running) -> None:
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    body = gzip.compress(b'{"model": "tiny", "prompt": "ab"}')
    response = server.client.post("/v1/completions", content=body, headers=headers)
    error = error_of(response, 415)
    assert error["code"] == "unsupported_encoding"
    assert "Content-Encoding 'gzip'" in error["message"]


@pytest.mark.parametrize(
    "path", ["/", "/health", "/ready", "/metrics", "/v1/models", "/page/main.js"]
)
def test_head_is_get_without_a_body(server: Running, path: str) -> None:
    head, got = server.client.head(path), server.client.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == got.headers["content-type"]
    error_of(server.client.get("/v1/completions"), 405)
    assert server.client.head("/v1/completions").status_code == 405


def test_unknown_places_and_methods(server: Running) -> None:
    assert "there is nothing at '/v2'" in error_of(server.client.get("/v2"), 404)["message"]
    error_of(server.client.get("/v1/chat/completions"), 405)
    error_of(server.client.get("/v1/models/other"), 404)
    error_of(server.client.get("/page/../app.py"), 404)
    error_of(server.client.get("/page/%2e%2e/app.py"), 404)


def test_a_key_is_asked_for(byte_engine: MakeEngine) -> None:
    with Running({"tiny": byte_engine()}, api_key="secret") as server:
        for headers in (
            {},
            {"authorization": "Bearer wrong"},
            {"authorization": "Basic secret"},
            {"authorization": "secret"},
        ):
            for path in ("/v1/models", "/metrics", "/openapi.json"):
                response = server.client.get(path, headers=headers)
                assert error_of(response, 401)["code"] == "invalid_api_key"
        right = {"authorization": "Bearer secret"}
        assert server.client.get("/v1/models", headers=right).status_code == 200
        for path in ("/", "/health", "/ready"):
            assert server.client.get(path).status_code == 200


def test_foreign_hosts_are_refused(server: Running) -> None:
    error_of(server.client.get("/v1/models", headers={"host": "evil.example:8000"}), 403)
    for host in ("localhost", f"127.0.0.1:{server.port}", "[::1]:80"):
        assert server.client.get("/v1/models", headers={"host": host}).status_code == 200


def test_large_bodies_are_refused(byte_engine: MakeEngine) -> None:
    with Running({"tiny": byte_engine()}, max_body_bytes=1000) as server:
        error_of(server.complete("x" * 2000), 413)

        def parts() -> Any:
            for _ in range(50):
                yield b"x" * 100

        headers = {"content-type": "application/json"}
        response = server.client.post("/v1/completions", content=parts(), headers=headers)
        error_of(response, 413)
        assert server.complete("ab").status_code == 200


def test_cors_is_off_unless_asked_for(byte_engine: MakeEngine, server: Running) -> None:
    origin = {"origin": "http://localhost:3000"}
    response = server.client.get("/v1/models", headers=origin)
    assert "access-control-allow-origin" not in response.headers
    engine = byte_engine()
    with Running({"tiny": engine}, cors_origins=("http://localhost:3000",)) as other:
        response = other.client.get("/v1/models", headers=origin)
        assert response.headers["access-control-allow-origin"] == origin["origin"]
        response = other.client.get("/v1/models", headers={"origin": "http://evil.example"})
        assert "access-control-allow-origin" not in response.headers


def test_a_full_queue_says_when_to_come_back(byte_engine: MakeEngine) -> None:
    engine = byte_engine(max_batch_size=1)
    gate = Gate(engine)
    with Running({"tiny": engine}, max_waiting=1) as server:
        body = {"model": "tiny", "prompt": "ab", "stream": True, **LONG}
        with server.client.stream("POST", "/v1/completions", json=body):
            thread = threading.Thread(target=server.complete, args=("c",), kwargs=LONG)
            thread.start()
            wait_for(lambda: server.models["tiny"].stats.waiting == 1)
            response = httpx.post(f"{server.url}/v1/completions", json=body)
            error = error_of(response, 429)
            assert error["code"] == "queue_full"
            assert int(response.headers["retry-after"]) >= 1
            gate.let()
            thread.join()
    assert 'dflash_busy_requests_total{model="tiny"} 1.0' in server.scrape.text().decode()


def test_overdue_requests_are_told(byte_engine: MakeEngine) -> None:
    engine = byte_engine(max_batch_size=1)
    gate = Gate(engine)
    with Running({"tiny": engine}) as server:
        timer = threading.Timer(0.3, gate.let)
        timer.start()
        error = error_of(server.complete("ab", timeout_seconds=0.1, **LONG), 504)
        assert error["code"] == "timeout"
        assert server.complete("ab").status_code == 200


def test_a_client_that_leaves_frees_its_slot(byte_engine: MakeEngine) -> None:
    engine = byte_engine(max_batch_size=1)
    gate = Gate(engine)
    with Running({"tiny": engine}) as server:
        for stream in (True, False):
            body = json.dumps(
                {"model": "tiny", "prompt": "ab", "stream": stream, **LONG}
            ).encode()
            head = (
                f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            with socket.create_connection(("127.0.0.1", server.port)) as connection:
                connection.sendall(head.encode() + body)
                wait_for(lambda: server.models["tiny"].stats.slots_in_use == 1)
            cancelled = f'cancelled_requests_total{{model="tiny"}} {2.0 - stream}'

            def is_counted(line: str = cancelled) -> bool:
                gate.let(1)  # a cancelled request ends between two steps
                return line in server.scrape.text().decode()

            wait_for(is_counted)
        wait_for(lambda: server.models["tiny"].stats.slots_in_use == 0)
        gate.let()
        assert server.complete("ab").status_code == 200
