"""In-flight batching on a fake session: other requests and their timing change no tokens."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.patience import PATIENCE, wait_for
from tests.runtime import tiny_tokenizer as tiny
from tests.runtime.callers import Caller, Gate
from tests.runtime.fake_session import FakeSession, fake_config
from trtllm_dflash.errors import BusyError, UsageError
from trtllm_dflash.runtime.engine import Engine
from trtllm_dflash.runtime.engine_thread import MAX_POLLED_WAITING, SWEEP_SECONDS
from trtllm_dflash.runtime.outputs import EngineStats
from trtllm_dflash.runtime.text.tokenizer import Tokenizer


def test_idle_thread_keeps_what_a_start_can_use(fake_engine: Callable[..., Engine]) -> None:
    engine = fake_engine()
    session = engine._session
    with engine.serve() as server:
        caller = Caller()
        server.submit([3], on_event=caller, max_tokens=3)
        caller.wait()
        before = session.kept
        wait_for(lambda: session.kept != before)


@pytest.mark.parametrize("lookahead", [0, 1])
def test_many_threads_many_requests(fake_engine: Callable[..., Engine], lookahead: int) -> None:
    engine, alone = fake_engine(max_batch_size=3, lookahead=lookahead), fake_engine()
    chance = random.Random(4)
    work = []
    for index in range(60):
        prompt = [chance.randrange(23) for _ in range(chance.randint(1, 40))]
        options: dict[str, Any] = {"max_tokens": chance.randint(1, 30)}
        options |= {"temperature": chance.choice([0.0, 0.8]), "seed": index}
        work.append((prompt, options))
    callers = [Caller() for _ in work]
    with engine.serve(prompt_tokens_per_step=4) as server:

        def submit(numbers: range) -> None:
            for number in numbers:
                prompt, options = work[number]
                server.submit(prompt, on_event=callers[number], **options)

        threads = [
            threading.Thread(target=submit, args=(range(first, 60, 6),)) for first in range(6)
        ]
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
        assert end.num_accepted_draft_tokens == sum(expected.acceptance_lengths) - len(
            expected.acceptance_lengths
        )
        assert 0 <= end.queue_seconds <= (end.first_token_seconds or 0) <= end.seconds
    assert (
        server.stats.waiting
        == server.stats.slots_in_use
        == server.stats.cache_positions_in_use
        == 0
    )
    assert engine.generate([[3]], max_tokens=2), "the engine is free again"


def test_requests_choose_their_drafts(fake_engine: Callable[..., Engine]) -> None:
    with fake_engine(accuracy=1.0).serve() as server:
        without, with_drafts = Caller(), Caller()
        server.submit([3], on_event=without, draft=False, stop_token_ids=(), max_tokens=9)
        assert without.wait().num_draft_tokens == 0
        server.submit([3], on_event=with_drafts, stop_token_ids=(), max_tokens=9)
        assert with_drafts.wait().num_draft_tokens > 0
    assert with_drafts.token_ids == without.token_ids


def test_full_queue_refuses_and_recovers(fake_engine: Callable[..., Engine]) -> None:
    engine = fake_engine(max_batch_size=1)
    gate = Gate(engine)
    with engine.serve(max_waiting=2) as server:
        callers = [Caller() for _ in range(4)]
        server.submit([3], on_event=callers[0])
        wait_for(lambda: not server.stats.waiting)
        for caller in callers[1:3]:
            server.submit([3], on_event=caller)
        with pytest.raises(
            BusyError,
            match=r"2 requests are waiting for this engine's 1 slots.*Try again later",
        ):
            server.submit([3], on_event=callers[3])
        gate.let()
        assert [caller.wait().finish_reason for caller in callers[:3]]
        server.submit([3], on_event=callers[3])
        callers[3].wait()


def test_stats_do_not_count_a_slot_as_waiting(fake_engine: Callable[..., Engine]) -> None:
    """Not even before its first step has ended."""
    engine = fake_engine(max_batch_size=1)
    gate = Gate(engine, "prefill")
    with engine.serve(max_waiting=1) as server:
        running, waiting = Caller(), Caller()
        server.submit([3], on_event=running)
        assert gate.reached.wait(PATIENCE)
        assert (server.stats.waiting, server.stats.slots_in_use) == (0, 1)
        server.submit([3], on_event=waiting)
        assert server.stats.waiting == 1
        with pytest.raises(BusyError, match="1 requests are waiting"):
            server.submit([3], on_event=Caller())
        gate.let()
        assert running.wait().queue_seconds < waiting.wait().queue_seconds


def test_waiting_callers_are_polled_a_few_at_a_time(
    fake_engine: Callable[..., Engine],
) -> None:
    engine = fake_engine(max_batch_size=1, accuracy=0.0)
    gate = Gate(engine)
    asked: list[int] = []

    def is_alive(number: int) -> Callable[[], bool]:
        return lambda: asked.append(number) is None

    with engine.serve() as server:
        callers = [Caller() for _ in range(1 + 5 * MAX_POLLED_WAITING)]
        for number, caller in enumerate(callers):
            server.submit(
                [3],
                on_event=caller,
                is_alive=is_alive(number),
                stop_token_ids=(),
                max_tokens=80 if not number else 1,
            )
        gate.let(1)
        wait_for(lambda: len(callers[0].pieces) >= 2)  # from here on all are there
        asked.clear()
        for _ in range(3):
            time.sleep(1.1 * SWEEP_SECONDS)
            gate.let(1)
        wait_for(lambda: len(callers[0].pieces) >= 5)
        once = [number for number in asked if number]
        assert sorted(once) == sorted(set(once))
        assert MAX_POLLED_WAITING <= len(once) <= 4 * MAX_POLLED_WAITING
        assert 0 in asked, "who runs is asked every time"
        gate.let()
        for caller in callers:
            caller.wait()


@pytest.mark.parametrize("lookahead", [0, 1])
def test_cancelling(
    fake_engine: Callable[..., Engine], lookahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trtllm_dflash.runtime.engine_thread.SWEEP_SECONDS", 0.0)
    engine = fake_engine(max_batch_size=1, accuracy=0.0, lookahead=lookahead)
    gate = Gate(engine)
    with engine.serve() as server:
        running, waiting, gone, kept = (Caller() for _ in range(4))
        wanted = [True]
        tickets = [server.submit([3], on_event=running, stop_token_ids=(), max_tokens=80)]
        tickets.append(server.submit([4], on_event=waiting, max_tokens=80))
        server.submit(
            [5], on_event=gone, is_alive=lambda: wanted[0], stop_token_ids=(), max_tokens=80
        )
        server.submit([6], on_event=kept, max_tokens=5)
        gate.let(3)
        wanted[0] = False
        for ticket in tickets:
            ticket.cancel()
        gate.let()
        assert (
            waiting.wait().finish_reason
            == running.wait().finish_reason
            == gone.wait().finish_reason
            == "cancelled"
        )
        assert waiting.token_ids == []
        assert len(running.token_ids) < 80
        kept.wait()
    (expected,) = fake_engine().generate([[6]], max_tokens=5)
    assert kept.token_ids == expected.token_ids


def test_stop_words_and_special_tokens(text_engine: Engine) -> None:
    config = text_engine.config
    alone = Engine(config, FakeSession(config), text_engine.tokenizer)
    (whole,) = alone.generate(["ab"], max_tokens=60, stop_token_ids=[])
    word = whole.text[20:22]
    assert whole.text.find(word) == 20
    with text_engine.serve() as server:
        caller, special = Caller(), Caller()
        server.submit(
            "ab", on_event=caller, stop_words=[word], max_tokens=60, stop_token_ids=[]
        )
        end = caller.wait()
        server.submit(
            "ab", on_event=special, stop_words=["</s>"], max_tokens=60, stop_token_ids=[]
        )
        special.wait()
        with pytest.raises(
            UsageError, match="stop_words holds '', expected texts that are not empty"
        ):
            server.submit("ab", on_event=caller, stop_words=[""])
    assert caller.text == whole.text[:20]
    assert (end.finish_reason, end.output_tokens) == ("stop", len(caller.token_ids))
    assert caller.token_ids == whole.token_ids[: len(caller.token_ids)]
    assert tiny.EOS in whole.token_ids
    assert special.token_ids == whole.token_ids[: whole.token_ids.index(tiny.EOS) + 1]


@pytest.mark.parametrize("lookahead", [0, 1])
def test_tokens_after_a_stop_word_are_not_accepted(tmp_path: Path, lookahead: int) -> None:
    """As for a stop token: what a step accepted counts up to the end of the answer."""
    config = fake_config(vocab_size=tiny.VOCAB_SIZE)
    session = FakeSession(config, accuracy=1.0, lookahead=lookahead)
    engine = Engine(config, session, Tokenizer(tiny.write_byte_level(tmp_path)))
    (whole,) = engine.generate(["ab"], max_tokens=40, stop_token_ids=[])
    place = next(
        p for p in range(9, 40) if p % 4 == 2 and whole.token_ids[p] < 128
    )  # in the middle of a block of four
    stop, until = whole.token_ids[place], whole.token_ids.index(whole.token_ids[place]) + 1
    ends = []
    with engine.serve() as server:
        for options in (
            {"stop_token_ids": [stop]},
            {"stop_token_ids": [], "stop_words": [chr(stop)]},
        ):
            caller = Caller()
            server.submit("ab", on_event=caller, max_tokens=40, **options)
            ends.append(caller.wait())
            assert caller.token_ids == whole.token_ids[:until]
    by_token, by_word = ends
    assert (
        by_word.num_accepted_draft_tokens
        == by_token.num_accepted_draft_tokens
        == until - 1 - by_token.steps
    )
    assert (by_word.num_draft_tokens, by_word.steps) == (
        by_token.num_draft_tokens,
        by_token.steps,
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_waiting": 0}, "max_waiting is 0, expected an integer of at least 1"),
        ({"prompt_tokens_per_step": -1}, "prompt_tokens_per_step is -1"),
    ],
)
def test_bad_settings(
    fake_engine: Callable[..., Engine], options: dict[str, Any], words: str
) -> None:
    engine = fake_engine()
    with pytest.raises(UsageError, match=words):
        engine.serve(**options)
    assert engine.generate([[3]], max_tokens=1)


@pytest.mark.parametrize(
    ("prompt", "options", "words"),
    [
        ([], {}, "the prompt is empty"),
        ([1] * 41, {}, "the prompt has 41 tokens"),
        ("text", {}, "this engine has no tokenizer"),
        ([1], {"stop_words": ["a"]}, "stop_words is for engines with a tokenizer"),
        (
            [1],
            {"stop_words": ["a"] * 65},
            "stop_words holds more than 64 entries, and a request may have at most 64",
        ),
        (
            [1],
            {"stop_words": ["a" * 257]},
            r"a text of 257 characters \('a{40}'…\), and one may have at most 256",
        ),
        (
            [1],
            {"stop_token_ids": [1] * 1025},
            "stop_token_ids holds more than 1024 entries, and a request may have at most 1024",
        ),
        ([1], {"temperature": -1}, "temperature is -1"),
        ([1], {"draft_len": 9}, "draft_len is 9, and this engine takes 0 to 3"),
    ],
)
def test_bad_requests_are_refused_at_once(
    fake_engine: Callable[..., Engine], prompt: Any, options: dict[str, Any], words: str
) -> None:
    with fake_engine().serve() as server, pytest.raises(UsageError, match=words):
        server.submit(prompt, on_event=Caller(), **options)


def test_stats_are_reported_and_end_at_zero(fake_engine: Callable[..., Engine]) -> None:
    loads: list[EngineStats] = []
    engine = fake_engine()
    gate = Gate(engine)
    with engine.serve(on_stats=loads.append) as server:
        caller = Caller()
        server.submit([3] * 7, on_event=caller)
        wait_for(lambda: bool(caller.pieces))
        assert server.stats == EngineStats(
            0, slots=3, slots_in_use=1, cache_positions=270, cache_positions_in_use=7
        )
        gate.let()
        caller.wait()
    assert loads[-1] == EngineStats(
        0, slots=3, slots_in_use=0, cache_positions=270, cache_positions_in_use=0
    )
