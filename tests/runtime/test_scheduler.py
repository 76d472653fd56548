"""In-flight batching on a fake session: what a request gets does not depend on who else is there, or when."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.runtime import tiny_tokenizer as tiny
from tests.runtime.fake import FakeSession, fake_config
from trtllm_dflash.config.sampling import SamplingParams
from trtllm_dflash.errors import BusyError, DFlashError, EngineError, UsageError
from trtllm_dflash.runtime.engine import Engine
from trtllm_dflash.runtime.events import Ended, Event, Load, Piece
from trtllm_dflash.runtime.scheduler import Scheduler
from trtllm_dflash.runtime.tokenizer import Tokenizer

WAIT = 20.0  # seconds that a test waits for what should take milliseconds


class Caller:
    """Collects the events of one request."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self.end: Ended | DFlashError | None = None
        self.done = threading.Event()

    def __call__(self, event: Event) -> None:
        assert self.end is None, "an event after the last one"
        if isinstance(event, Piece):
            self.pieces.append(event)
        self.end = event.ended if isinstance(event, Piece) else event
        if self.end is not None:
            self.done.set()

    @property
    def token_ids(self) -> list[int]:
        return [token for piece in self.pieces for token in piece.token_ids]

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    def wait(self) -> Ended:
        assert self.done.wait(WAIT), "no end came"
        assert isinstance(self.end, Ended), self.end
        return self.end


class Gate:
    """Holds the engine's generation steps until the test lets so many go."""

    def __init__(self, engine: Engine) -> None:
        self._permits = threading.Semaphore(0)
        generate = engine._session.generate

        def held(count: int, width: int) -> None:
            assert self._permits.acquire(timeout=WAIT)
            generate(count, width)

        engine._session.generate = held  # type: ignore[method-assign]

    def let(self, steps: int = 10_000) -> None:
        self._permits.release(steps)


@pytest.fixture
def text_engine(tmp_path: Path) -> Engine:
    config = fake_config(vocab_size=tiny.VOCAB_SIZE)
    return Engine(config, FakeSession(config), Tokenizer(tiny.write_byte_level(tmp_path)))


def test_many_threads_many_requests(fake_engine: Callable[..., Engine]) -> None:
    engine, alone = fake_engine(max_batch_size=3), fake_engine()
    chance = random.Random(4)
    work = [
        (
            [chance.randrange(23) for _ in range(chance.randint(1, 40))],
            {"max_new_tokens": chance.randint(1, 30), "temperature": chance.choice([0.0, 0.8]), "seed": index},
        )
        for index in range(60)
    ]
    callers = [Caller() for _ in work]
    with engine.serve(prompt_tokens_per_step=4) as scheduler:

        def submit(numbers: range) -> None:
            for number in numbers:
                prompt, options = work[number]
                scheduler.submit(prompt, on_event=callers[number], **options)

        threads = [threading.Thread(target=submit, args=(range(first, 60, 6),)) for first in range(6)]
        for thread in threads:
            thread.start()
        ends = [caller.wait() for caller in callers]
        for thread in threads:
            thread.join()
    for (prompt, options), caller, end in zip(work, callers, ends, strict=True):
        (expected,) = alone.generate([prompt], **options)
        assert caller.token_ids == expected.token_ids
        assert end.finish_reason == expected.finish_reason
        assert end.output_tokens == len(expected.token_ids)
        assert end.input_tokens == len(prompt)
        assert end.drafts_accepted == sum(expected.acceptance_lengths) - len(expected.acceptance_lengths)
        assert 0 <= end.queue_seconds <= (end.first_token_seconds or 0) <= end.seconds
    assert scheduler.load.waiting == scheduler.load.slots_in_use == scheduler.load.cache_positions_in_use == 0
    assert engine.generate([[3]], max_new_tokens=2), "the engine is free again"


def test_no_drafts_for_those_who_want_none(fake_engine: Callable[..., Engine]) -> None:
    with fake_engine(accuracy=1.0).serve() as scheduler:
        without, with_drafts = Caller(), Caller()
        scheduler.submit([3], on_event=without, draft=False, stop_token_ids=(), max_new_tokens=9)
        assert without.wait().drafts_proposed == 0
        scheduler.submit([3], on_event=with_drafts, stop_token_ids=(), max_new_tokens=9)
        assert with_drafts.wait().drafts_proposed > 0
    assert with_drafts.token_ids == without.token_ids


def test_a_full_queue_refuses_and_recovers(fake_engine: Callable[..., Engine]) -> None:
    engine = fake_engine(max_batch_size=1)
    gate = Gate(engine)
    with engine.serve(max_waiting=2) as scheduler:
        callers = [Caller() for _ in range(4)]
        scheduler.submit([3], on_event=callers[0])
        while scheduler.load.waiting:
            pass
        for caller in callers[1:3]:
            scheduler.submit([3], on_event=caller)
        with pytest.raises(BusyError, match=r"2 requests are waiting for this engine's 1 slots.*Try again later"):
            scheduler.submit([3], on_event=callers[3])
        gate.let()
        assert [caller.wait().finish_reason for caller in callers[:3]]
        scheduler.submit([3], on_event=callers[3])
        callers[3].wait()


def test_cancelling(fake_engine: Callable[..., Engine]) -> None:
    engine = fake_engine(max_batch_size=1, accuracy=0.0)
    gate = Gate(engine)
    with engine.serve() as scheduler:
        running, waiting, gone, kept = (Caller() for _ in range(4))
        wanted = [True]
        tickets = [scheduler.submit([3], on_event=running, stop_token_ids=(), max_new_tokens=80)]
        tickets.append(scheduler.submit([4], on_event=waiting, max_new_tokens=80))
        scheduler.submit([5], on_event=gone, is_wanted=lambda: wanted[0], stop_token_ids=(), max_new_tokens=80)
        scheduler.submit([6], on_event=kept, max_new_tokens=5)
        gate.let(3)
        wanted[0] = False
        for ticket in tickets:
            ticket.cancel()
        gate.let()
        assert waiting.wait().finish_reason == running.wait().finish_reason == gone.wait().finish_reason == "cancelled"
        assert waiting.token_ids == []
        assert len(running.token_ids) < 80
        kept.wait()
    (expected,) = fake_engine().generate([[6]], max_new_tokens=5)
    assert kept.token_ids == expected.token_ids


def test_stop_words_and_special_tokens(text_engine: Engine) -> None:
    config = text_engine.config
    alone = Engine(config, FakeSession(config), text_engine.tokenizer)
    (whole,) = alone.generate(["ab"], max_new_tokens=60, stop_token_ids=[])
    word = whole.text[20:22]
    assert whole.text.find(word) == 20
    with text_engine.serve() as scheduler:
        caller, special = Caller(), Caller()
        scheduler.submit("ab", on_event=caller, stop_words=[word], max_new_tokens=60, stop_token_ids=[])
        end = caller.wait()
        scheduler.submit("ab", on_event=special, stop_words=["</s>"], max_new_tokens=60, stop_token_ids=[])
        special.wait()
        with pytest.raises(UsageError, match="stop_words holds '', expected texts that are not empty"):
            scheduler.submit("ab", on_event=caller, stop_words=[""])
        request = scheduler._checked("ab", ["</s>", "x"], SamplingParams())
    assert caller.text == whole.text[:20]
    assert (end.finish_reason, end.output_tokens) == ("stop", len(caller.token_ids))
    assert caller.token_ids == whole.token_ids[: len(caller.token_ids)]
    assert request[0].stop_token_ids == {2, tiny.EOS}
    assert request[1] == ["x"]


def test_a_failed_step_fails_its_requests_and_no_others(fake_engine: Callable[..., Engine]) -> None:
    engine = fake_engine()
    generate, failures = engine._session.generate, iter([True])

    def fails_once(count: int, width: int) -> None:
        if next(failures, False):
            raise RuntimeError("device lost")
        generate(count, width)

    engine._session.generate = fails_once  # type: ignore[method-assign]
    with engine.serve() as scheduler:
        first, second = Caller(), Caller()
        scheduler.submit([3], on_event=first, stop_token_ids=())
        assert first.done.wait(WAIT)
        assert isinstance(first.end, EngineError)
        assert "a step failed: RuntimeError: device lost" in str(first.end)
        scheduler.submit([3], on_event=second, max_new_tokens=6)
        second.wait()
        assert scheduler.load.waiting == 0
    (expected,) = fake_engine().generate([[3]], max_new_tokens=6)
    assert second.token_ids == expected.token_ids


def test_a_caller_that_fails_does_not_stop_the_others(fake_engine: Callable[..., Engine]) -> None:
    def broken(_: Event) -> None:
        raise ValueError("no")

    with fake_engine().serve() as scheduler:
        caller = Caller()
        scheduler.submit([3], on_event=broken)
        scheduler.submit([4], on_event=caller, is_wanted=lambda: 1 / 1 > 0)
        caller.wait()


def test_closing_ends_everything(fake_engine: Callable[..., Engine]) -> None:
    engine = fake_engine(max_batch_size=1)
    gate = Gate(engine)
    scheduler: Scheduler = engine.serve()
    callers = [Caller(), Caller()]
    for caller in callers:
        scheduler.submit([3], on_event=caller)
    with pytest.raises(EngineError, match="in the middle of another stream"):
        engine.generate([[3]])
    closing = threading.Thread(target=scheduler.close)
    closing.start()
    gate.let()
    closing.join(WAIT)
    assert not closing.is_alive()
    for caller in callers:
        assert caller.done.wait(WAIT)
    assert isinstance(callers[1].end, EngineError)
    assert "the engine was closed before this request had ended" in str(callers[1].end)
    with pytest.raises(EngineError, match="is being closed and takes no more requests"):
        scheduler.submit([3], on_event=Caller())


def test_closing_may_let_requests_end(fake_engine: Callable[..., Engine]) -> None:
    engine = fake_engine(max_batch_size=1)
    scheduler = engine.serve()
    callers = [Caller() for _ in range(4)]
    for caller in callers:
        scheduler.submit([3], on_event=caller, max_new_tokens=20)
    scheduler.close(drain_seconds=WAIT)
    assert all(caller.wait().finish_reason != "cancelled" for caller in callers)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_waiting": 0}, "max_waiting is 0, expected an integer of at least 1"),
        ({"prompt_tokens_per_step": -1}, "prompt_tokens_per_step is -1"),
    ],
)
def test_bad_settings(fake_engine: Callable[..., Engine], options: dict[str, Any], words: str) -> None:
    engine = fake_engine()
    with pytest.raises(UsageError, match=words):
        engine.serve(**options)
    assert engine.generate([[3]], max_new_tokens=1)


@pytest.mark.parametrize(
    ("prompt", "options", "words"),
    [
        ([], {}, "the prompt is empty"),
        ([1] * 41, {}, "the prompt has 41 tokens"),
        ("text", {}, "this engine has no tokenizer"),
        ([1], {"stop_words": ["a"]}, "stop_words is for engines with a tokenizer"),
        ([1], {"temperature": -1}, "temperature is -1"),
        ([1], {"draft_len": 9}, "draft_len is 9, and this engine takes 0 to 3"),
    ],
)
def test_bad_requests_are_refused_at_once(
    fake_engine: Callable[..., Engine], prompt: Any, options: dict[str, Any], words: str
) -> None:
    with fake_engine().serve() as scheduler, pytest.raises(UsageError, match=words):
        scheduler.submit(prompt, on_event=Caller(), **options)


def test_load_is_reported_and_ends_at_nothing(fake_engine: Callable[..., Engine]) -> None:
    loads: list[Load] = []
    engine = fake_engine()
    gate = Gate(engine)
    with engine.serve(on_load=loads.append) as scheduler:
        caller = Caller()
        scheduler.submit([3] * 7, on_event=caller)
        while not caller.pieces:
            pass
        assert scheduler.load == Load(0, slots=3, slots_in_use=1, cache_positions=270, cache_positions_in_use=7)
        gate.let()
        caller.wait()
    assert loads[-1] == Load(0, slots=3, slots_in_use=0, cache_positions=270, cache_positions_in_use=0)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not [thread for thread in threading.enumerate() if thread.name == "dflash-engine"]
