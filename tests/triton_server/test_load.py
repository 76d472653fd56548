"""The real server under load: 1,000 streams, 32 at a time; and what batching and interleaving are
worth.
"""

from __future__ import annotations

import os
import random
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.patience import wait_for
from tests.triton_server.client import Client, Reply
from trtllm_dflash.runtime.engine import Engine

pytestmark = pytest.mark.slow

REQUESTS, CONCURRENCY = 1000, 32
# what a stub may grow by in the last three quarters; one lost array a request would be more
MEMORY_KB = 8_000


def test_server_under_a_thousand_streams(client: Client, server: Any, oracle: Engine) -> None:
    """No failure, no token lost, doubled or another's; memory stays where it was."""
    chance = random.Random(7)
    kinds = [random_request(chance) for _ in range(40)]
    expected = [answer_of(oracle, kind) for kind in kinds]
    work = [chance.randrange(len(kinds)) for _ in range(REQUESTS)]
    (stub,) = server.stubs()
    before, memory = client.settled_metrics("tiny"), []

    def ask(place: int) -> Reply:
        if place % (REQUESTS // 4) == 0:
            memory.append(resident_kb(stub))
        return client.stream("tiny", return_num_output_tokens=True, **kinds[work[place]])

    with ThreadPoolExecutor(CONCURRENCY) as pool:
        replies = list(pool.map(ask, range(REQUESTS)))
    for kind, reply in zip(work, replies, strict=True):
        assert reply.status == 200
        assert (
            reply.text,
            sum(row["num_output_tokens"] for row in reply.responses),
        ) == expected[kind]
    memory.append(resident_kb(stub))
    assert memory[-1] - memory[1] < MEMORY_KB, memory
    wait_for(
        lambda: (
            client.metrics("tiny")["dflash_requests_total"]
            == before["dflash_requests_total"] + REQUESTS
        )
    )
    tokens = sum(expected[kind][1] for kind in work)
    assert (
        client.metrics("tiny")["dflash_output_tokens_total"]
        == before["dflash_output_tokens_total"] + tokens
    )


def random_request(chance: random.Random) -> dict[str, Any]:
    """Make a request of any length, greedy or sampled, with drafts or without."""
    letters = [chr(chance.randint(33, 120)) for _ in range(chance.choice([1, 5, 30, 200]))]
    return {
        "text_input": "".join(letters),
        "max_tokens": chance.choice([1, 4, 16, 40]),
        "temperature": chance.choice([0.0, 0.0, 0.8]),
        "seed": chance.randrange(100),
        "draft": chance.random() < 0.9,
    }


def answer_of(oracle: Engine, kind: dict[str, Any]) -> tuple[str, int]:
    (answer,) = oracle.generate(
        [kind["text_input"]],
        max_tokens=kind["max_tokens"],
        **{name: kind[name] for name in ("temperature", "seed", "draft")},
    )
    return answer.text, len(answer.token_ids)


def resident_kb(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return int(
        next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]
    )


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_short_prompt_overtakes_a_long_one(client: Client) -> None:
    """It overtakes: the long prompt's first token comes after its own.

    The long prompts differ, since a known one would be no long one.
    """
    overtook = []
    for letter in "abcdefghi":
        with ThreadPoolExecutor(1) as pool:
            before = client.settled_metrics("tiny")["dflash_input_tokens_total"]
            long = pool.submit(client.generate, "tiny", text_input=letter * 1500, max_tokens=1)
            time.sleep(0.01)
            assert client.generate("tiny", text_input="Hello", max_tokens=1).status == 200
            overtook.append(not long.done())
            assert long.result().status == 200
        wait_for(
            lambda before=before: (
                client.metrics("tiny")["dflash_input_tokens_total"] == before + 1505
            )
        )  # type: ignore[misc]
    assert sum(overtook) >= 3, (
        "the machine decides which of two threads goes on first, but not so often"
    )


def test_batching_is_faster_than_one_by_one(client: Client, server: Any) -> None:
    """In processor time, which is the engine's whole time on an idle machine."""
    inputs = {"text_input": "Once upon a time", "max_tokens": 60, "ignore_eos": True}

    def seconds(concurrency: int) -> float:
        start = processor_seconds(stub)
        with ThreadPoolExecutor(concurrency) as pool:
            replies = list(pool.map(lambda _: client.stream("tiny", **inputs), range(24)))
        assert len({reply.text for reply in replies}) == 1
        client.settled_metrics("tiny")
        return processor_seconds(stub) - start

    (stub,) = server.stubs()
    ratios = [seconds(1) / seconds(8) for _ in range(3)]
    assert statistics.median(ratios) > 1.3, ratios


def test_instances_share_the_requests(client: Client, oracle: Engine) -> None:
    """Two instances of one model, as on two GPUs: each a process of its own."""
    inputs = {"text_input": "Once upon a time", "max_tokens": 100, "ignore_eos": True}
    (expected,) = oracle.generate([inputs["text_input"]], max_tokens=100, stop_token_ids=[])
    assert client.load("twins").status == 200
    with ThreadPoolExecutor(16) as pool:
        replies = list(pool.map(lambda _: client.stream("twins", **inputs), range(64)))
    assert {reply.text for reply in replies} == {expected.text}
    wait_for(
        lambda: sum(client.metrics_by_instance("twins", "dflash_requests_total").values()) == 64
    )
    shares = client.metrics_by_instance("twins", "dflash_requests_total")
    assert len(shares) == 2
    assert min(shares.values()) >= 8, shares
    client.unload("twins")
