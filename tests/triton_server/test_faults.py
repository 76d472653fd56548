"""Faults around the real server: no client hangs, nothing leaks, other answers stay the same."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.patience import PATIENCE, wait_for
from tests.triton_server.client import Client, Reply
from tests.triton_server.conftest import NARROW_QUEUE, SLOTS
from trtllm_dflash.runtime.engine import Engine

pytestmark = pytest.mark.slow

LONG: dict[str, Any] = {"text_input": "Once upon a time", "max_tokens": 500, "ignore_eos": True}


@pytest.fixture(scope="session")
def long_text(oracle: Engine) -> str:
    (generation,) = oracle.generate(
        [LONG["text_input"]], max_tokens=LONG["max_tokens"], stop_token_ids=[]
    )
    return generation.text


def test_disconnected_clients_free_their_slots(client: Client, oracle: Engine) -> None:
    before = client.settled_metrics("tiny")["dflash_cancelled_requests_total"]
    (expected,) = oracle.generate(["He stays"], max_tokens=300, stop_token_ids=[])
    with ThreadPoolExecutor() as pool:
        stays = pool.submit(
            client.stream, "tiny", text_input="He stays", max_tokens=300, ignore_eos=True
        )
        for _ in range(12):  # more than there are slots
            with client.open_stream("tiny", **LONG) as responses:
                next(responses)
        assert stays.result().text == expected.text
    wait_for(lambda: client.metrics("tiny")["dflash_cancelled_requests_total"] == before + 12)


def test_disconnected_clients_leave_the_queue(client: Client) -> None:
    """Triton sees that an HTTP client has gone when it writes to it: so they cost a prompt and no
    more.
    """
    cancelled, waiting = "dflash_cancelled_requests_total", "dflash_waiting_requests"
    before = client.settled_metrics("tiny")
    with contextlib.ExitStack() as streams:
        for _ in range(SLOTS):
            next(
                streams.enter_context(client.open_stream("tiny", **LONG | {"max_tokens": 1900}))
            )
        for _ in range(4):
            streams.enter_context(client.sent("tiny", **LONG))
        wait_for(lambda: client.metrics("tiny")[waiting] == 4)
    wait_for(lambda: client.metrics("tiny")[cancelled] == before[cancelled] + SLOTS + 4)
    name = "dflash_output_tokens_total"
    assert client.metrics("tiny")[name] - before[name] < (SLOTS + 4) * LONG["max_tokens"]


def test_full_queue_refuses(client: Client) -> None:
    assert client.load("narrow").status == 200
    with ThreadPoolExecutor() as pool, contextlib.ExitStack() as streams:
        for _ in range(SLOTS):
            next(
                streams.enter_context(
                    client.open_stream("narrow", **LONG | {"max_tokens": 1900})
                )
            )
        futures = [
            pool.submit(client.generate, "narrow", text_input="ab", max_tokens=2)
            for _ in range(6)
        ]
        wait_for(
            lambda: sum(future.done() for future in futures) == len(futures) - NARROW_QUEUE
        )
        refused = [future.result() for future in futures if future.done()]
        streams.close()
        served = [reply for future in futures if (reply := future.result()) not in refused]
    for reply in refused:
        assert reply.status != 200
        assert (
            f"{NARROW_QUEUE} requests are waiting for this engine's {SLOTS} slots"
            in reply.error
        )
    assert [(reply.status, reply.error) for reply in served] == [(200, "")] * NARROW_QUEUE
    client.unload("narrow")


def test_an_overdue_request_is_told(client: Client) -> None:
    """Waiting or running; it counts once, and gives its slot back."""
    before = client.settled_metrics("tiny")
    inputs = {"text_input": "ab", "max_tokens": 1900, "ignore_eos": True}
    reply = client.stream("tiny", timeout_seconds=0.2, priority=-1, **inputs)
    assert "not whole after 0.2 s (timeout_seconds)" in reply.error
    after = client.settled_metrics("tiny")
    for name in ("dflash_overdue_requests_total", "dflash_failed_requests_total"):
        assert after[name] - before[name] == 1
    assert after["dflash_slots_in_use"] == 0


def test_prompt_of_megabytes_is_refused_at_once(client: Client) -> None:
    start = time.monotonic()
    reply = client.generate("tiny", text_input="x" * 8_000_000)
    assert reply.status == 400
    assert (
        "text_input has 8000000 characters, and a prompt of this engine has at most 1500 tokens"
        in reply.error
    )
    assert time.monotonic() - start < 30  # less than one on an idle machine


def test_unload_under_load(client: Client, long_text: str) -> None:
    """Also for those that wait for a slot, as many as the queue of this model holds."""
    assert client.load("narrow").status == 200
    count = SLOTS + NARROW_QUEUE
    replies = in_the_middle_of_streams(client, "narrow", lambda: client.unload("narrow"), count)
    assert len(replies) == count
    assert [reply.error for reply in replies] == [""] * len(replies)
    assert all(reply.text == long_text for reply in replies), (
        "running requests end before the model is gone"
    )
    assert not client.is_ready("narrow")
    assert client.load("narrow").status == 200
    assert client.generate("narrow", text_input="ab", max_tokens=2).status == 200
    client.unload("narrow")


BREAKING_MODEL = """
from trtllm_dflash.triton_server.model import TritonPythonModel as Model


class TritonPythonModel(Model):
    def initialize(self, args):
        super().initialize(args)
        decode, steps = self._engine._session.decode, iter(range(1, 1000))

        def breaks(count, width, **rest):
            if next(steps, 0) == 10:
                raise RuntimeError("the device is on fire")
            decode(count, width, **rest)

        self._engine._session.decode = breaks
"""


def test_failing_step_ends_its_streams(
    client: Client, repository: Path, long_text: str
) -> None:
    """An error, in our words, after part of the text; and the next request is served."""
    model = shutil.copytree(repository / "tiny", repository / "breaking")
    (model / "config.pbtxt").write_text(
        (model / "config.pbtxt").read_text().replace('"tiny"', '"breaking"')
    )
    (model / "1" / "model.py").write_text(BREAKING_MODEL)
    assert client.load("breaking").status == 200
    reply = client.stream("breaking", **LONG)
    assert "a step failed: RuntimeError: the device is on fire" in reply.error
    shown = "".join(response["text_output"] for response in reply.responses[:-1])
    assert shown
    assert long_text.startswith(shown)
    assert client.generate("breaking", **LONG | {"max_tokens": 50}).text == long_text[:50]
    client.unload("breaking")


def edit(model: Path, old: str, new: str) -> None:
    path = model / "config.pbtxt"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def _no_engine(model: Path) -> None:
    shutil.rmtree(model / "1" / "engine")


def _no_tokenizer(model: Path) -> None:
    (model / "1" / "engine" / "tokenizer.json").unlink()


def _other_weights(model: Path) -> None:
    path = model / "1" / "engine" / "rank0.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def _another_build(model: Path) -> None:
    path = model / "1" / "engine" / "manifest.json"
    path.write_text(path.read_text().replace('"created": "20', '"created": "19'))


def _bad_setting(model: Path) -> None:
    edit(model, f'string_value: "{NARROW_QUEUE}"', 'string_value: "many"')


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_no_engine, "there is no such directory"),
        (_no_tokenizer, "tokenizer.json is missing"),
        (_other_weights, "rank0.safetensors was changed after the build"),
        (_another_build, "it was built again since. Export it again: dflash-trt export-triton"),
        (_bad_setting, "max_waiting is 'many', expected an integer of at least 1"),
    ],
)
def test_missing_or_stale_engine_does_not_load(
    client: Client, repository: Path, damage: Callable[[Path], None], words: str
) -> None:
    model = repository / f"damaged{damage.__name__}"
    shutil.copytree(repository / "narrow", model)
    edit(model, 'name: "narrow"', f'name: "{model.name}"')
    damage(model)
    reply = client.load(model.name)
    assert reply.status == 400
    assert words in reply.error
    assert not client.is_ready(model.name)


def test_killed_stub_ends_its_requests(start: Callable[..., Any], repository: Path) -> None:
    server = start(repository, exit_seconds=2)
    client = Client(server.http, server.metrics)
    (stub,) = server.stubs()
    futures = streams_in_flight(client, "tiny")
    os.kill(stub, signal.SIGKILL)
    with contextlib.suppress(
        TimeoutError
    ):  # what was under way gets its end when the server stops, at the latest
        for future in futures:
            future.result(timeout=2)
    with contextlib.suppress(
        ConnectionError
    ):  # sometimes this server aborts with its model's process
        assert client.generate("tiny", text_input="ab", max_tokens=2).error
    server.stop()
    for future in futures:
        future.result(timeout=PATIENCE)
    assert server.process.poll() is not None


def test_sigterm_lets_streams_end(
    start: Callable[..., Any], repository: Path, long_text: str
) -> None:
    server = start(repository)
    stubs = server.stubs()
    futures = streams_in_flight(Client(server.http, server.metrics), "tiny")
    assert server.stop(signal.SIGTERM) == 0
    assert [future.result(timeout=PATIENCE).text_shown for future in futures] == [
        long_text
    ] * len(futures)
    assert server.left_behind == []
    assert not any(Path(f"/proc/{pid}").exists() for pid in stubs)


class Shown(Reply):
    """A reply of which the end may be missing."""

    @property
    def text_shown(self) -> str:
        return "".join(response.get("text_output", "") for response in self.responses)


def streams_in_flight(client: Client, model: str, count: int = 5) -> list[Future[Shown]]:
    """Start streams in threads; each has begun, or waits if there are more than slots.

    A connection that breaks ends its reply.
    """
    begun = threading.Semaphore(0)

    def stream() -> Shown:
        responses: list[dict[str, Any]] = []
        with (
            contextlib.suppress(OSError, ValueError),
            client.open_stream(model, **LONG) as coming,
        ):
            for response in coming:
                responses.append(response)
                if len(responses) == 1:
                    begun.release()
        return Shown(200, responses)

    pool = ThreadPoolExecutor(count)
    futures = [pool.submit(stream) for _ in range(count)]
    pool.shutdown(wait=False)
    for _ in range(min(count, SLOTS)):
        assert begun.acquire(timeout=PATIENCE)
    if count > SLOTS:
        wait_for(lambda: client.metrics(model)["dflash_waiting_requests"] == count - SLOTS)
    return futures


def in_the_middle_of_streams(
    client: Client, model: str, act: Callable[[], Any], count: int
) -> list[Reply]:
    """Return what streams get while `act` runs."""
    futures = streams_in_flight(client, model, count)
    act()
    return [future.result(timeout=PATIENCE) for future in futures]
