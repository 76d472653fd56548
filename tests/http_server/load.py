"""Many clients at once: streams, whole answers, bad bodies, clients that leave or are late."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from contextlib import suppress
from typing import Any

import httpx

from tests.patience import PATIENCE

AT_ONCE = 32
# Bodies that are no request; each is an error of status 400.
BAD = (
    b"{",
    b"[]",
    b'{"model": 5}',
    b'{"prompt": "a", "model": "m", "n": -1}',
    b'{"prompt": "a", "model": "m", "wrong": 1}',
    b"[" * 3000,
)
LEAVES = ("stream",) * 10 + ("whole",) * 3 + ("leave", "leave", "cut", "bad", "late")


class Storm:
    """Clients of one server, which send requests of known answers."""

    def __init__(self, url: str, model: str, wishes: list[dict[str, Any]]) -> None:
        self.url = url
        self.model = model
        self.wishes = wishes
        self.expected: list[str] = []
        self.tally = Counter[str]()
        self.is_over = False

    async def learn(self) -> None:
        """Ask for each answer alone."""
        async with self._client() as client:
            for wish in self.wishes:
                response = await client.post("/v1/completions", json=self._body(wish))
                assert response.status_code == 200, response.text
                self.expected.append(response.json()["choices"][0]["text"])

    async def blow(self, *, seconds: float, least: int) -> None:
        """Send requests for some time, and until so many were answered."""
        until = time.monotonic() + seconds
        async with self._client() as client:

            async def visit(number: int) -> None:
                chance = random.Random(number)
                while time.monotonic() < until or self.tally["200"] < least:
                    await self._visit(client, chance)

            await asyncio.gather(*map(visit, range(AT_ONCE)))
            await self._check_that_all_are_gone(client)

    def _client(self) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=2 * AT_ONCE)
        return httpx.AsyncClient(base_url=self.url, timeout=PATIENCE, limits=limits)

    def _body(self, wish: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {"model": self.model, **wish, **more}

    async def _visit(self, client: httpx.AsyncClient, chance: random.Random) -> None:
        number = chance.randrange(len(self.wishes))
        wish, expected = self.wishes[number], self.expected[number]
        how = chance.choice(LEAVES)
        if self.tally["429"] > self.tally["200"]:
            await asyncio.sleep(chance.random() / 5)  # clients come back later
        if how == "bad":
            response = await client.post(
                "/v1/completions",
                content=chance.choice(BAD),
                headers={"content-type": "application/json"},
            )
            assert response.status_code == 400, response.text
            self.tally["bad"] += 1
        elif how == "cut":
            await self._cut(wish, chance)
        elif how in ("whole", "late"):
            limit = {"timeout_seconds": 0.03} if how == "late" else {}
            response = await client.post("/v1/completions", json=self._body(wish, **limit))
            if self._count_status(response.status_code):
                assert response.json()["choices"][0]["text"] == expected
        else:
            await self._stream(client, wish, expected, chance, leaves=how == "leave")

    async def _stream(
        self,
        client: httpx.AsyncClient,
        wish: dict[str, Any],
        expected: str,
        chance: random.Random,
        *,
        leaves: bool,
    ) -> None:
        text, most = "", chance.randrange(4)
        body = self._body(wish, stream=True, dflash={"tokens": chance.random() < 0.5})
        async with client.stream("POST", "/v1/completions", json=body) as response:
            if not self._count_status(response.status_code):
                return
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                text += json.loads(line[6:])["choices"][0]["text"]
                most -= leaves
                if most < 0:
                    self.tally["left"] += 1
                    break
        assert expected.startswith(text)
        assert leaves or text == expected

    async def _cut(self, wish: dict[str, Any], chance: random.Random) -> None:
        """Send a request, or a part of one, and drop the connection."""
        host, port = self.url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        body = json.dumps(self._body(wish, stream=True)).encode()
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        data = head.encode() + body
        writer.write(data[: chance.choice([20, len(head) + 5, len(data), len(data)])])
        with suppress(OSError):
            await writer.drain()
            await asyncio.sleep(chance.random() / 10)
            writer.close()
            await writer.wait_closed()
        self.tally["cut"] += 1

    def _count_status(self, status: int) -> bool:
        self.tally[str(status)] += 1
        assert status in (200, 429, 504)
        return status == 200

    async def _check_that_all_are_gone(self, client: httpx.AsyncClient) -> None:
        end = time.monotonic() + PATIENCE
        while True:
            text = (await client.get("/metrics")).text
            busy = gauge(text, "dflash_slots_in_use") + gauge(text, "dflash_waiting_requests")
            if not busy and not gauge(text, "dflash_cache_positions_in_use"):
                return
            assert time.monotonic() < end, "a slot stays in use"
            await asyncio.sleep(0.05)


def gauge(text: str, name: str) -> float:
    """Return the value of a metric without a look at its labels."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"{name}{{")]
    return float(line.rpartition(" ")[2])


def wishes_of(count: int, most_tokens: int) -> list[dict[str, Any]]:
    """Return requests of many lengths, greedy and sampled."""
    chance = random.Random(5)
    wishes = []
    for seed in range(count):
        prompt = "".join(chance.choice("abcdef gh ") for _ in range(chance.randint(1, 60)))
        wish = {
            "prompt": prompt or "a",
            "max_tokens": chance.randint(1, most_tokens),
            "ignore_eos": True,
        }
        sampled = {"temperature": 0.9, "seed": seed}
        wishes.append(wish | (sampled if seed % 2 else {"temperature": 0}))
    return wishes
