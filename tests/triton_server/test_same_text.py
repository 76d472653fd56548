"""The same requests to `dflash-trt run`, to `dflash-trt serve` and to Triton: one text."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from click.testing import CliRunner

pytest.importorskip("httpx")

from tests.conftest import DEMO
from tests.http_server.served import Served
from tests.triton_server.client import Client
from trtllm_dflash.cli import main

pytestmark = [pytest.mark.slow, pytest.mark.demo]
PROMPT = "Name three fruits, and say why."
SAMPLED: dict[str, Any] = {"temperature": 0.9, "seed": 5}
# By the names that all three have.
WISHES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "greedy with penalties": {"repetition_penalty": 1.3, "presence_penalty": 0.5},
    "sampled": SAMPLED,
    "of the likeliest": {
        **SAMPLED,
        "seed": 2**63 + 1,
        "top_p": 0.8,
        "top_k": 30,
        "min_p": 0.02,
    },
    "sampled with penalties": SAMPLED | {"frequency_penalty": 0.7},
    "with other drafts": SAMPLED | {"drafts": "lookup", "draft_len": 1},
}


@pytest.fixture
def triton(client: Client) -> Iterator[Client]:
    assert client.load("demo").status == 200
    yield client
    client.unload("demo")


def text_of_run(wish: dict[str, Any]) -> str:
    """Return what the command writes, without the line's end."""
    options = [word for name, value in wish.items() for word in (f"--{name}", str(value))]
    words = [word.replace("_", "-") if word.startswith("--") else word for word in options]
    command = ["run", str(DEMO / "cpu"), PROMPT, "--max-tokens", "24", *words]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.stderr
    return str(result.stdout).removesuffix("\n")


def test_one_text_whatever_serves(triton: Client) -> None:
    expected = [text_of_run(wish) for wish in WISHES.values()]
    assert len(set(expected)) == 5  # drafts change no text, the others do

    def of_triton(wish: dict[str, Any]) -> str:
        return triton.stream("demo", text_input=PROMPT, chat=True, max_tokens=24, **wish).text

    with Served() as server, ThreadPoolExecutor(len(WISHES)) as clients:

        def of_serve(wish: dict[str, Any]) -> str:
            body = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 24}
            response = server.post("/v1/chat/completions", **body, **{"temperature": 0, **wish})
            return str(response.json()["choices"][0]["message"]["content"])

        # All at once: neighbours in the batch change nothing either.
        assert list(clients.map(of_serve, WISHES.values())) == expected
        assert list(clients.map(of_triton, WISHES.values())) == expected
        assert server.end() == 0
