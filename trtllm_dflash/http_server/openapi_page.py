"""What /openapi.json says of the responses; FastAPI writes what it says of the requests."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

_ERRORS = {
    "400": "something is wrong with the request",
    "401": "the API key is missing or wrong",
    "403": "the host is not this machine",
    "404": "there is no such model",
    "413": "the body is too large",
    "415": "the body is compressed",
    "429": "the queue is full; Retry-After says when to come back",
    "500": "the server failed",
    "503": "an engine has failed, or the server is closing",
    "504": "the time of the request is over",
}
_NULLABLE_TEXT = {"anyOf": [{"type": "string"}, {"type": "null"}]}
_ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": _NULLABLE_TEXT,
                "code": _NULLABLE_TEXT,
            },
        }
    },
}
_JSON_OBJECT = {"application/json": {"schema": {"type": "object"}}}
_EVENTS = {"text/event-stream": {"schema": {"type": "string"}}}
_TEXT = {"text/plain": {"schema": {"type": "string"}}}


def describe(app: FastAPI) -> None:
    """Let the application's page state every response, in the form that errors really have."""

    def page() -> dict[str, Any]:
        if app.openapi_schema is None:
            found = get_openapi(title=app.title, version=app.version, routes=app.routes)
            schemas = found["components"]["schemas"]
            for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own form
                schemas.pop(name, None)
            schemas["Error"] = _ERROR_SCHEMA
            for path, methods in found["paths"].items():
                for operation in methods.values():
                    operation["responses"] = _responses(path)
            app.openapi_schema = found
        return app.openapi_schema

    app.openapi = page  # type: ignore[method-assign]


def _responses(path: str) -> dict[str, Any]:
    content: dict[str, Any] = _JSON_OBJECT
    if path == "/metrics":
        content = _TEXT
    elif path.endswith("completions"):
        content = _JSON_OBJECT | _EVENTS
    found = {"200": {"description": "the answer", "content": content}}
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    for status, words in _ERRORS.items():
        found[status] = {"description": words, "content": error}
    return found
