"""Responses of server-sent events, whose end the client can bring about by going away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from trtllm_dflash.http_server.answer_stream import AnswerStream

DONE = b"data: [DONE]\n\n"
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


def event_of(data: Mapping[str, Any]) -> bytes:
    """Return one event; JSON has no line ends, so that it is one line."""
    return b"data: " + compact_json(data) + b"\n\n"


def compact_json(data: Mapping[str, Any]) -> bytes:
    """Return JSON in UTF-8; half a surrogate pair, which no text of ours has, becomes "?"."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode(errors="replace")


class SseResponse(Response):
    """Sends what an iterator gives, until it ends or the client has gone."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], answers: AnswerStream) -> None:
        """Take the events, and the answers that are cancelled when nobody reads them."""
        self.status_code = 200
        self.background = None
        self.raw_headers = list(_HEADERS)
        self._events = events
        self._answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events; a client that has gone makes them end."""
        del scope
        async with cancelling(receive, self._answers):
            await send(
                {
                    "type": "http.response.start",
                    "status": self.status_code,
                    "headers": self.raw_headers,
                }
            )
            async for data in self._events:
                await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b""})


class cancelling:  # noqa: N801 - used as a function is
    """Cancel answers when their client goes away, or the block is left before they have ended."""

    def __init__(self, receive: Receive, answers: AnswerStream) -> None:
        """Take where the news of the client comes from."""
        self._receive = receive
        self._answers = answers
        self._watcher: asyncio.Task[None] | None = None

    async def __aenter__(self) -> None:
        self._watcher = asyncio.create_task(self._watch())

    async def __aexit__(self, *_: object) -> None:
        assert self._watcher is not None
        self._watcher.cancel()
        if not self._answers.is_over:
            self._answers.cancel()
        with suppress(asyncio.CancelledError):
            await self._watcher

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._answers.cancel()
