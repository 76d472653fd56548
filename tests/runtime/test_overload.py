"""An engine at twice its capacity: no wrong text, nobody without an end, nothing left.

For each request that ends two come, so that a queue is full on a machine of any speed.
DFLASH_OVERLOAD_SECONDS sets how long; the figures are printed (pytest -s). docs/serving.md has
those of a long run.
"""

from __future__ import annotations

import os
import random
import resource
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import DEMO
from tests.patience import PATIENCE
from tests.runtime.callers import Caller
from trtllm_dflash.errors import BusyError, DeadlineError
from trtllm_dflash.options.queueing import Queueing
from trtllm_dflash.runtime.engine import Engine
from trtllm_dflash.runtime.engine_server import EngineServer
from trtllm_dflash.runtime.outputs import Event, FinishInfo

SECONDS = float(os.environ.get("DFLASH_OVERLOAD_SECONDS", "1"))
MAX_WAITING = 6
KINDS = 12
SAMPLED = {"temperature": 0.9, "top_k": 20}

Kind = tuple[list[int], dict[str, Any]]


def kinds_of(chance: random.Random, vocab_size: int) -> list[Kind]:
    """Return requests of several sizes, greedy and sampled."""
    kinds: list[Kind] = []
    for seed in range(KINDS):
        prompt = [chance.randrange(vocab_size) for _ in range(chance.randint(1, 30))]
        options: dict[str, Any] = {"max_tokens": chance.randint(1, 24), "stop_token_ids": ()}
        kinds.append((prompt, options | (SAMPLED | {"seed": seed} if seed % 3 else {})))
    return kinds


class Visitors:
    """Clients of an engine, each with a wish; they come whether or not there is room."""

    def __init__(
        self, server: EngineServer, kinds: list[Kind], expected: list[list[int]]
    ) -> None:
        self.server = server
        self.kinds = kinds
        self.expected = expected
        self.tally: Counter[str] = Counter()
        self.callers: list[tuple[int, Caller]] = []
        self.ends = threading.Semaphore(0)

    def visit(self, chance: random.Random) -> None:
        """Send a request with some priority and patience; some cancel, or are gone."""
        number = chance.randrange(len(self.kinds))
        prompt, options = self.kinds[number]
        patience = chance.choice([None, None, PATIENCE, 0.05, 0.3])
        queueing = Queueing(priority=chance.randint(-1, 1), timeout_seconds=patience)
        caller, gone = Caller(), chance.random() < 0.05

        def on_event(event: Event) -> None:
            caller(event)
            if caller.done.is_set():
                self.ends.release()

        try:
            handle = self.server.submit(
                prompt,
                on_event=on_event,
                is_alive=lambda: not gone,
                queueing=queueing,
                **options,
            )
        except BusyError:
            self.tally["refused"] += 1
            return
        if chance.random() < 0.1:
            handle.cancel()
        self.callers.append((number, caller))

    def judge(self) -> None:
        """Check that each has one end, and the text that it would have alone, or its beginning."""
        for number, caller in self.callers:
            assert caller.done.wait(PATIENCE), "no end came"
            tokens, expected = caller.token_ids, self.expected[number]
            assert tokens == expected[: len(tokens)]
            end = caller.end
            if isinstance(end, DeadlineError):
                self.tally["overdue"] += 1
                continue
            assert isinstance(end, FinishInfo), end
            self.tally[end.finish_reason] += 1
            assert end.finish_reason == "cancelled" or tokens == expected


def overload(engine: Engine, alone: Engine, vocab_size: int, least: int) -> Counter[str]:
    """Send two requests for each that ends, and so many at least, however slow the machine is."""
    chance = random.Random(3)
    kinds = kinds_of(chance, vocab_size)
    expected = [alone.generate([prompt], **wish)[0].token_ids for prompt, wish in kinds]
    threads, memory = threading.active_count(), 0
    with engine.serve(max_waiting=MAX_WAITING) as server:
        visitors = Visitors(server, kinds, expected)
        until, pairs = time.perf_counter() + SECONDS, 0
        while time.perf_counter() < until or 2 * pairs < least:
            visitors.visit(chance)
            visitors.visit(chance)
            pairs += 1
            assert visitors.ends.acquire(timeout=PATIENCE), "nothing ends"
            if len(visitors.callers) >= 1000:
                visitors.judge()
                visitors.callers.clear()
                memory = memory or _peak_kb()
        visitors.judge()
        stats = server.stats
        assert stats.waiting == stats.slots_in_use == stats.cache_positions_in_use == 0
    assert threading.active_count() == threads
    if memory:
        assert _peak_kb() < memory + 100_000
    print(dict(visitors.tally))
    return visitors.tally


def _peak_kb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def test_twice_the_capacity(fake_engine: Callable[..., Engine]) -> None:
    engine, alone = fake_engine(max_batch_size=2, lookahead=1), fake_engine()
    decode = engine._session.decode

    def slow(batch: int, width: int, *, draft: bool) -> None:
        time.sleep(0.002)  # as a device has it
        decode(batch, width, draft=draft)

    engine._session.decode = slow  # type: ignore[method-assign]
    tally = overload(engine, alone, engine.config.vocab_size, 150)
    assert tally["length"]
    assert tally["refused"]
    assert tally["cancelled"]


@pytest.mark.slow
@pytest.mark.demo
def test_twice_the_capacity_of_the_demo_pair() -> None:
    with Engine.load(Path(DEMO / "cpu")) as engine, Engine.load(DEMO / "plain") as alone:
        tally = overload(engine, alone, 40_000, 40)
        assert tally["length"]
