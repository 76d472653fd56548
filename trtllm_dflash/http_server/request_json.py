"""Bodies whose keys are unique: of two wishes with one name, one would be dropped in silence."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from trtllm_dflash.options.checks import shown


class UniqueKeysRoute(APIRoute):
    """A route whose requests are read so."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what answers a request."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(_UniqueKeysRequest(request.scope, request.receive))

        return handle


class _UniqueKeysRequest(Request):
    """A request whose JSON has no key twice."""

    async def json(self) -> Any:
        """Return the parsed body; JSONDecodeError for a key that stands twice in an object."""
        return json.loads(await self.body(), object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise json.JSONDecodeError(f"an object has the key {shown(twice)} twice", "", 0)
    return found
