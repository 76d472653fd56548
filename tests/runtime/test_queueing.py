"""Priorities, limits of time, and a full queue that says when to come back."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import pytest

from tests.patience import PATIENCE, wait_for
from tests.runtime.callers import Caller, Gate, scheduler_of
from trtllm_dflash.errors import BusyError, DeadlineError, UsageError
from trtllm_dflash.options.queueing import Queueing
from trtllm_dflash.options.sampling import SamplingParams
from trtllm_dflash.runtime.engine import Engine
from trtllm_dflash.runtime.preprocess import make_requests
from trtllm_dflash.runtime.request import Request
from trtllm_dflash.runtime.turnover import Turnover


def request(engine: Engine, length: int, priority: int) -> Request:
    params = SamplingParams(max_tokens=1, stop_token_ids=())
    (made,) = make_requests([[3] * length], params, engine.config)
    made.priority = priority
    return made


def test_the_smallest_priority_gets_the_next_slot(fake_engine: Callable[..., Engine]) -> None:
    engine = fake_engine(max_batch_size=1)
    scheduler = scheduler_of(engine)
    requests = [request(engine, 3, priority) for priority in (0, 1, -1, 0, 1, -1)]
    for each in requests:
        scheduler.add(each)
    ended = []
    while scheduler.busy:
        ended += [update.request for update in scheduler.step()]
    assert [requests.index(each) for each in ended] == [2, 5, 0, 3, 1, 4]


@pytest.mark.parametrize(("priority", "overtakes"), [(-1, True), (0, False), (1, False)])
def test_an_urgent_prompt_overtakes_a_shorter_one(
    fake_engine: Callable[..., Engine], priority: int, overtakes: bool
) -> None:
    engine = fake_engine(max_num_tokens=5)
    scheduler = scheduler_of(engine, 5)
    first, second = request(engine, 30, 0), request(engine, 40, priority)
    scheduler.add(first)
    scheduler.step()
    scheduler.add(second)
    while not (first.output_ids or second.output_ids):
        scheduler.step()
    assert bool(second.output_ids) == overtakes
    while scheduler.busy:
        scheduler.step()


def test_a_short_prompt_does_not_overtake_an_urgent_one(
    fake_engine: Callable[..., Engine],
) -> None:
    engine = fake_engine(max_num_tokens=5)
    scheduler = scheduler_of(engine, 5)
    urgent, short = request(engine, 30, -1), request(engine, 2, 0)
    scheduler.add(urgent)
    scheduler.step()
    scheduler.add(short)
    while not urgent.output_ids:
        scheduler.step()
        assert not short.output_ids


def test_what_is_overdue_ends_waiting_or_running(fake_engine: Callable[..., Engine]) -> None:
    """The error says how far it came; others go on with the tokens that they have alone."""
    engine, alone = fake_engine(max_batch_size=1), fake_engine(max_batch_size=1)
    options: dict[str, Any] = {"max_tokens": 9, "stop_token_ids": ()}
    gate = Gate(engine)
    with engine.serve() as server:
        soon = Queueing(timeout_seconds=PATIENCE)
        running, waiting, patient = Caller(), Caller(), Caller()
        server.submit([3], on_event=running, queueing=soon, **options)
        server.submit([4], on_event=waiting, queueing=soon, **options)
        server.submit([5], on_event=patient, **options)
        assert gate.reached.wait(PATIENCE)
        object.__setattr__(soon, "arrived", perf_counter() - 2 * PATIENCE)
        gate.let()
        patient.wait()
        for caller, tokens in ((running, len(running.token_ids)), (waiting, 0)):
            assert caller.done.wait(PATIENCE)
            assert isinstance(caller.end, DeadlineError)
            assert "not whole after 300 s (timeout_seconds)" in str(caller.end)
            assert f"has {tokens} tokens" in str(caller.end)
        assert 0 < len(running.token_ids) < 9
        assert server.stats.slots_in_use == server.stats.waiting == 0
    (expected,) = alone.generate([[5]], **options)
    assert patient.token_ids == expected.token_ids


def test_enough_time_changes_nothing(fake_engine: Callable[..., Engine]) -> None:
    engine, alone = fake_engine(), fake_engine()
    queueing = Queueing(priority=3, timeout_seconds=PATIENCE)
    with engine.serve() as server:
        caller = Caller()
        server.submit([3], on_event=caller, queueing=queueing, max_tokens=9)
        caller.wait()
    (expected,) = alone.generate([[3]], max_tokens=9)
    assert caller.token_ids == expected.token_ids


def test_room_comes_as_soon_as_slots_were_given_back() -> None:
    turnover = Turnover(slots=4)
    assert turnover.seconds_until_room(1) is None
    turnover.note_end(10.0)
    assert turnover.seconds_until_room(1) == 3
    assert turnover.seconds_until_room(8) == 20
    for _ in range(100):
        turnover.note_end(0.01)
    assert turnover.seconds_until_room(1) == 1


def test_full_queue_says_when_to_come_back(fake_engine: Callable[..., Engine]) -> None:
    engine = fake_engine(max_batch_size=1)
    gate = Gate(engine)
    with engine.serve(max_waiting=1) as server:

        def refusal() -> BusyError:
            while True:
                try:
                    server.submit([3], on_event=Caller(), max_tokens=2)
                except BusyError as error:
                    return error

        first = refusal()
        assert first.retry_after is None
        assert str(first).endswith("Try again later.")
        gate.let(1)
        wait_for(lambda: not server.stats.waiting)
        second = refusal()
        assert second.retry_after is not None
        assert str(second).endswith(f"Try again in {second.retry_after} s.")
        gate.let()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"priority": 1.5}, "priority is 1.5, expected an integer from -2147483648 to"),
        ({"priority": 2**31}, "priority is 2147483648, expected an integer"),
        ({"timeout_seconds": 0}, "timeout_seconds is 0, expected a number above 0"),
        ({"timeout_seconds": float("nan")}, "timeout_seconds is nan, expected a number"),
        ({"timeout_seconds": float("inf")}, "timeout_seconds is inf, expected a number"),
        ({"timeout_seconds": "3"}, "timeout_seconds is '3', expected a number"),
        ({"timeout_seconds": True}, "timeout_seconds is True, expected a number"),
    ],
)
def test_bad_values_are_told(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        Queueing(**values)
    assert words in str(caught.value)
