"""A small server with the page and a scripted endpoint: what a test wants a stream to bring.

The real server is in tests of its own; this one can be slow, hostile, rude, or very fast.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from trtllm_dflash.http_server import app

Tokens = list[tuple[str, str]]  # text and source of each token of a step
TYPES = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
}


@dataclass
class Script:
    """What the endpoint answers with.

    steps        tokens of each step, the prefill's first
    pause        seconds before each step
    break_after  steps after which the connection is cut; None: never
    refusal      status and error instead of a stream
    """

    steps: Iterable[Tokens] = ()
    pause: float = 0.0
    break_after: int | None = None
    refusal: tuple[int, dict[str, Any]] | None = None
    reasoning_steps: int = 0
    cached_tokens: int = 0
    on_start: Callable[[], None] = lambda: None


@dataclass
class Seen:
    """What the server has been asked."""

    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    num_broken: int = 0  # streams whose client has gone


class MockServer(ThreadingHTTPServer):
    """Answers each chat request with what `answer` makes of its body."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, answer: Callable[[dict[str, Any]], Script], port: int = 0) -> None:
        self.answer = answer
        self.seen = Seen()
        self.api_key: str | None = None
        self.is_hung_up = False
        self.model = {
            "id": "demo",
            "object": "model",
            "max_model_len": 2048,
            "dflash": {
                "block_size": 8,
                "draft_len": "auto",  # up to 7
                "drafts": ["dflash", "lookup", "both"],
                "speculates": True,
            },
        }
        super().__init__(("127.0.0.1", port), _Handler)

    @property
    def url(self) -> str:
        """Return the address of the page."""
        return f"http://127.0.0.1:{self.server_address[1]}/"


@contextmanager
def mock_server(
    answer: Callable[[dict[str, Any]], Script], port: int = 0
) -> Iterator[MockServer]:
    """Run a server in a thread."""
    server = MockServer(answer, port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: MockServer

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Answer with a file of the page, the models, or that all is well."""
        if self.path == "/ready":
            return self._json(200, {"status": "ready"})
        if self.path == "/v1/models":
            if not self._has_key():
                return self._json(
                    401, {"error": {"message": "the API key is missing or wrong."}}
                )
            return self._json(200, {"object": "list", "data": [self.server.model]})
        name = "index.html" if self.path == "/" else self.path.removeprefix("/page/")
        path = app.PAGE / Path(name).name
        if not path.is_file():
            return self._json(404, {"error": {"message": "there is nothing here."}})
        return self._send(200, path.read_bytes(), TYPES[path.suffix])

    def do_POST(self) -> None:
        """Stream what the script has."""
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.seen.bodies.append(body)
        self.server.seen.keys.append(self.headers.get("authorization"))
        if not self._has_key():
            self._json(401, {"error": {"message": "the API key is missing or wrong."}})
            return
        script = self.server.answer(body)
        if script.refusal is not None:
            self._json(*script.refusal)
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        script.on_start()
        try:
            self._stream(script)
        except (BrokenPipeError, ConnectionResetError):
            self.server.seen.num_broken += 1
        self.close_connection = True

    def _stream(self, script: Script) -> None:
        begun, first, steps = time.perf_counter(), 0.0, []
        for number, tokens in enumerate(script.steps):
            if script.pause:
                time.sleep(script.pause)
            if number == script.break_after or self.server.is_hung_up:
                return
            first = first or time.perf_counter() - begun
            steps.append(tokens)
            self._event(_chunk(tokens, number, is_reasoning=number < script.reasoning_steps))
        self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        self._event(_last(steps, script, first, time.perf_counter() - begun))
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, data: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(data).encode() + b"\n\n")

    def _has_key(self) -> bool:
        key = self.server.api_key
        return key is None or self.headers.get("authorization") == f"Bearer {key}"

    def _json(self, status: int, data: dict[str, Any]) -> None:
        self._send(status, json.dumps(data).encode(), "application/json")

    def _send(self, status: int, body: bytes, media_type: str) -> None:
        self.send_response(status)
        self.send_header("content-type", media_type)
        self.send_header("content-length", str(len(body)))
        self.send_header("content-security-policy", app.PAGE_POLICY)
        self.end_headers()
        self.wfile.write(body)


def _chunk(tokens: Tokens, number: int, *, is_reasoning: bool) -> dict[str, Any]:
    channel = "reasoning_content" if is_reasoning else "content"
    shown = []
    for text, source in tokens:
        where = {"text": "", "reasoning": text} if is_reasoning else {"text": text}
        shown.append({**where, "source": source})
    delta = {channel: "".join(text for text, _ in tokens)}
    return {
        "choices": [{"index": 0, "delta": delta, "finish_reason": None}],
        "dflash": {"tokens": shown, "acceptance": len(tokens) if number else None},
    }


def _last(steps: list[Tokens], script: Script, first: float, seconds: float) -> dict[str, Any]:
    lengths = [len(step) for step in steps[1:]]
    drafts = {}
    for source in ("dflash", "lookup"):
        accepted = sum(origin == source for step in steps for _, origin in step)
        drafts[source] = {"verified": 2 * accepted, "accepted": accepted}
    num_tokens = sum(len(step) for step in steps)
    return {
        "choices": [],
        "usage": {
            "prompt_tokens": 40,
            "completion_tokens": num_tokens,
            "prompt_tokens_details": {"cached_tokens": script.cached_tokens},
        },
        "dflash": {
            "acceptance_length": sum(lengths) / max(1, len(lengths)),
            "acceptance_histogram": [
                lengths.count(length + 1) for length in range(max(lengths, default=0))
            ],
            "drafts": drafts,
            "steps": len(lengths),
            "timings": {"queue_seconds": 0, "first_token_seconds": first, "seconds": seconds},
        },
    }
