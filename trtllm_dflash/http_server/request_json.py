"""Bodies whose keys are unique: of two wishes with one name, one would be dropped in silence."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from trtllm_dflash.options.checks import shown
from trtllm_dflash.unique_keys import unique_keys


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
        return json.loads(await self.body(), object_pairs_hook=unique_keys(_refusal))


def _refusal(key: str) -> json.JSONDecodeError:
    return json.JSONDecodeError(f"an object has the key {shown(key)} twice", "", 0)
