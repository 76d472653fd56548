"""What every request passes before it is read: its host, its key, its size."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterable
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trtllm_dflash.http_server.openai_errors import ApiError
from trtllm_dflash.options.checks import shown

# Answered without a key: what says whether the server is there, and the page, which asks for one.
OPEN_PATHS = frozenset({"/", "/health", "/ready"})
OPEN_FOLDER = "/page/"
_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
)


@dataclass(frozen=True)
class Rules:
    """Who may ask, and how much.

    api_key    None: everybody may.
    local      requests must name this machine as their host: a foreign web page whose name leads
               here cannot (DNS rebinding).
    """

    api_key: str | None
    local: bool
    max_body_bytes: int


class Guards:
    """An ASGI application around another one, which refuses before anything is read."""

    def __init__(self, app: ASGIApp, rules: Rules) -> None:
        """Take the application and the rules."""
        self._app = app
        self._rules = rules
        self._key = None if rules.api_key is None else _digest(rules.api_key)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with what is wrong."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_new(message)]
            await send(message)

        error = self._error(scope["path"], Headers(scope=scope))
        if error is not None:
            await send_error(error, send_with_headers)
            return
        if scope["method"] == "HEAD":  # the server sends no body then
            scope = {**scope, "method": "GET"}
        bounded = _bounded(receive, self._rules.max_body_bytes)
        await self._app(scope, bounded, send_with_headers)

    def _error(self, path: str, headers: Headers) -> ApiError | None:
        if self._rules.local and _host_name(headers.get("host", "")) not in _LOCAL_NAMES:
            return ApiError(
                403, "this server answers requests to this machine's own names alone."
            )
        is_open = path in OPEN_PATHS or path.startswith(OPEN_FOLDER)
        if self._key is not None and not is_open:
            given = headers.get("authorization", "")
            scheme, _, key = given.partition(" ")
            # Always compared, and in constant time.
            matches = hmac.compare_digest(_digest(key.strip()), self._key)
            if not matches or scheme.lower() != "bearer":
                return ApiError(
                    401,
                    "the API key is missing or wrong. Send it as `Authorization: Bearer KEY`.",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
        encoding = headers.get("content-encoding", "identity")
        if encoding.lower() != "identity":
            return ApiError(
                415,
                f"the body is compressed (Content-Encoding {shown(encoding)}). Send it as it is.",
                code="unsupported_encoding",
            )
        length = headers.get("content-length", "0")
        if (
            length.isdecimal()
            and len(length) < 20
            and int(length) <= self._rules.max_body_bytes
        ):
            return None
        return too_large(self._rules.max_body_bytes)


async def send_error(error: ApiError, send: Send) -> None:
    """Answer with an error."""
    body = json.dumps(error.body()).encode()
    headers = [(name.lower().encode(), text.encode()) for name, text in error.headers.items()]
    headers += [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def too_large(limit: int) -> ApiError:
    """Return the error of a body that is too large."""
    return ApiError(
        413, f"the body is larger than {limit} bytes (--max-body-mib).", code="body_too_large"
    )


def _bounded(receive: Receive, limit: int) -> Receive:
    """Return a `receive` that raises when a body without a stated length is too large."""
    total = 0

    async def bounded() -> Message:
        nonlocal total
        message = await receive()
        total += len(message.get("body", b""))
        if total > limit:
            # The one exception that the framework's reading of bodies lets through.
            raise HTTPException(413, too_large(limit).message)
        return message

    return bounded


def _new(message: Message) -> Iterable[tuple[bytes, bytes]]:
    """Return the headers that each response has, but for those that it has already."""
    there = {name.lower() for name, _ in message.get("headers", ())}
    return [(name, value) for name, value in _HEADERS if name not in there]


def _host_name(host: str) -> str:
    """Return a Host header without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if ":" in host else host


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="surrogateescape")).digest()
