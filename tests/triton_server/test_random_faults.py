"""Random faults among innocent streams, with hostile tokenizers and templates as neighbours.

DFLASH_FAULT_SECONDS sets how long; DFLASH_FAULT_SEED what. The figures are printed (pytest -s).
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.patience import wait_for
from tests.triton_server.client import Client, Reply
from tests.triton_server.conftest import local_server
from tests.triton_server.hostile_models import PANIC_LENGTH, TRAPS, write_hostile_models
from tests.triton_server.test_load import answer_of, random_request
from trtllm_dflash.options.triton_export import TritonExportConfig
from trtllm_dflash.runtime.engine import Engine
from trtllm_dflash.triton_server.export import export

pytestmark = pytest.mark.slow

SECONDS = float(os.environ.get("DFLASH_FAULT_SECONDS", "45"))
SEED = int(os.environ.get("DFLASH_FAULT_SEED", "11"))
CLIENTS = 10
MODELS = ("tiny", "trapped", "panics", "mute", "breaking")
TRACES = ("Traceback", "should not happen", "site-packages", "left execute")


class Tally:
    """What clients saw, by model: answers, failures that the model told, and who went away."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.seen: Counter[str] = Counter()
        self.wrong: list[str] = []

    def add(self, what: str) -> None:
        with self._lock:
            self.seen[what] += 1

    def add_wrong(self, text: str) -> None:
        with self._lock:
            self.wrong.append(text)


class Crowd:
    """Clients that ask innocently, or try a fault; each checks its own answer."""

    def __init__(self, client: Client, oracle: Engine, seed: int) -> None:
        self.client = client
        self.tally = Tally()
        self.chance = random.Random(seed)
        kinds = [random_request(self.chance) for _ in range(40)]
        self.innocent = [(kind, answer_of(oracle, kind)[0]) for kind in kinds]
        assert oracle.tokenizer is not None
        chat = oracle.tokenizer.encode_chat("ab")
        self.chat_text = oracle.generate([chat], max_tokens=12)[0].text

    def visit(self, seed: int) -> None:
        """Do one thing, chosen by `seed`."""
        chance = random.Random(seed)
        deed: Callable[[random.Random], None] = chance.choice(
            [self.ask, self.ask, self.ask, self.chat, self.leave, *[self.fault] * 4]
        )
        try:
            deed(chance)
        except Exception as error:  # noqa: BLE001 - a client must see an answer, whatever happens
            self.tally.add_wrong(f"{deed.__name__}: {type(error).__name__}: {error}")

    def ask(self, chance: random.Random) -> None:
        """Stream an innocent request; its text must be what it is alone."""
        model = chance.choice(MODELS)
        kind, expected = chance.choice(self.innocent)
        self.judge(model, self.client.stream(model, **kind), expected)

    def chat(self, chance: random.Random) -> None:
        """Ask an ordinary chat, also of the model whose template has traps."""
        model = chance.choice(("tiny", "trapped"))
        reply = self.client.stream(model, text_input="ab", chat=True, max_tokens=12)
        self.judge(model, reply, self.chat_text)

    def leave(self, chance: random.Random) -> None:
        """Go away in the middle of a long stream."""
        model = chance.choice(("tiny", "panics"))
        inputs = {"text_input": "Once upon", "max_tokens": 1500, "ignore_eos": True}
        with self.client.open_stream(model, **inputs) as responses:
            for _ in range(chance.randint(1, 4)):
                next(responses)
        self.tally.add(f"{model} left")

    def fault(self, chance: random.Random) -> None:
        """Send what must be refused in words, and is one failure of its model."""
        model = chance.choice(MODELS)
        wrong: list[dict[str, Any]] = [
            {"temprature": 1.5},
            {"temperature": -1.0},
            {"top_k": 2},
            {"end_id": 3},
            {"messages": "[1, 2", "text_input": "a"},
            {"text_input": "y" * 1501},
            {"text_input": ""},
            {"stop_words": ["a" * 300]},
            {"draft_len": 99},
            {"chat_template_kwargs": "7"},
            {"system": "b", "chat": False},
        ]
        inputs = chance.choice(wrong)
        kind = chance.random()
        if kind < 0.15:
            # The endless one costs 5 s of a processor.
            (trap,) = chance.choices(list(TRAPS), [1, *[10] * (len(TRAPS) - 1)])
            model, inputs = "trapped", {"text_input": trap, "chat": True}
        elif kind < 0.17:  # more than a second of a processor each
            model, inputs = "panics", {"text_input": "x" * PANIC_LENGTH}
        reply = self.client.stream(model, **{"text_input": "ab", "max_tokens": 4} | inputs)
        if not reply.error:
            self.tally.add_wrong(f"{model} answered {inputs}: {reply.text[:40]!r}")
        self.judge_error(model, reply)

    def judge(self, model: str, reply: Reply, expected: str) -> None:
        if not reply.error:
            self.tally.add(f"{model} answered")
            if reply.text != expected:
                self.tally.add_wrong(f"{model} gave {reply.text[:60]!r} for {expected[:60]!r}")
            return
        may_fail = model == "breaking" or (model == "mute" and "z" * 10 in expected)
        if not may_fail:
            self.tally.add_wrong(f"{model} failed an innocent: {reply.error}")
        self.judge_error(model, reply)

    def judge_error(self, model: str, reply: Reply) -> None:
        self.tally.add(f"{model} failed")
        if any(trace in reply.error for trace in TRACES):
            self.tally.add_wrong(f"{model} told of its inside: {reply.error[:200]}")


@pytest.fixture
def crowd(
    tiny_engine: Path, oracle: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Any:
    """Start a server with an ordinary model and hostile ones, and people around it."""
    monkeypatch.setenv("DFLASH_NUM_THREADS", "1")
    repository = tmp_path / "repository"
    export(TritonExportConfig(tiny_engine, repository, name="tiny"))
    write_hostile_models(tiny_engine, repository, tmp_path)
    arguments = ("--model-control-mode=explicit", "--load-model=*")
    log = tmp_path / "log"
    with local_server.LocalServer(repository, log, arguments=arguments) as server:
        server.wait_until_ready()
        client = Client(server.http, server.metrics)
        yield Crowd(client, oracle, SEED)
    assert server.left_behind == []


def test_innocents_are_served_among_random_faults(crowd: Crowd) -> None:
    """Every innocent text is right, every failure is told and counted, every slot comes back."""
    until = time.monotonic() + SECONDS
    numbers = random.Random(SEED)

    def work(_: int) -> None:
        while time.monotonic() < until:
            crowd.visit(numbers.randrange(2**40))

    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(work, range(CLIENTS)))
    seen, wrong = crowd.tally.seen, crowd.tally.wrong
    print(f"{SECONDS:.0f} s, seed {SEED}: {json.dumps(dict(sorted(seen.items())))}")
    assert not wrong, "\n".join(wrong[:20])
    client = crowd.client
    for model in MODELS:
        ended = seen[f"{model} answered"] + seen[f"{model} left"]
        failed = seen[f"{model} failed"]

        def settled(model: str = model, ended: int = ended, failed: int = failed) -> bool:
            now = client.metrics(model)
            return (
                now["dflash_slots_in_use"] == now["dflash_waiting_requests"] == 0
                and now["dflash_requests_total"] == ended
                and now["dflash_failed_requests_total"] == failed
            )

        wait_for(settled)
        assert client.is_ready(model)
