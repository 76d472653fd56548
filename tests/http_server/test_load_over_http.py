"""1,000 streams at 32 at once, with clients that leave: no wrong text, no slot that stays in use.

DFLASH_SERVE_SECONDS sets for how long the demo pair is asked; the figures are printed (pytest -s).
"""

from __future__ import annotations

import asyncio
import os

import pytest

from tests.http_server.conftest import MakeEngine
from tests.http_server.load import AT_ONCE, Storm, gauge, wishes_of
from tests.http_server.running import Running
from tests.http_server.served import Served

SECONDS = float(os.environ.get("DFLASH_SERVE_SECONDS", "10"))
MAX_GROWTH_KB = 100_000


@pytest.mark.slow
def test_a_thousand_streams(byte_engine: MakeEngine) -> None:
    with Running({"tiny": byte_engine(max_batch_size=8)}, max_waiting=22) as server:
        storm = Storm(server.url, "tiny", wishes_of(40, 60))
        asyncio.run(storm.learn())
        asyncio.run(storm.blow(seconds=0, least=1000))
    print(dict(storm.tally))
    for what in ("200", "429", "bad", "cut", "left"):
        assert storm.tally[what], what


@pytest.mark.slow
@pytest.mark.demo
def test_the_demo_pair_under_load() -> None:
    with Served(max_waiting=24) as server:
        storm = Storm(server.url, "demo", wishes_of(24, 24))
        asyncio.run(storm.learn())
        asyncio.run(storm.blow(seconds=SECONDS / 4, least=20))
        before = server.memory_kb()
        asyncio.run(storm.blow(seconds=SECONDS, least=40))
        growth = server.memory_kb() - before
        metrics = server.get("/metrics").text
        assert server.end() == 0
        assert "Traceback" not in server.errors()
    print(f"{SECONDS:g} s, {AT_ONCE} at once: {dict(storm.tally)}")
    print(f"no wrong text, no slot in use; memory: {before} kB, then {growth} kB more")
    assert storm.tally["200"]
    assert growth < MAX_GROWTH_KB
    assert gauge(metrics, "dflash_requests_total") >= storm.tally["200"]
