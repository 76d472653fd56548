"""Failures around the engine thread: callers get the real error, others are served."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests.patience import PATIENCE
from tests.runtime.callers import Caller, Gate
from trtllm_dflash.errors import ClosedError, EngineError
from trtllm_dflash.runtime.engine import Engine
from trtllm_dflash.runtime.engine_server import EngineServer
from trtllm_dflash.runtime.outputs import Event


@pytest.mark.parametrize("method", ["decode", "prefill", "open_slot", "collect"])
@pytest.mark.parametrize("lookahead", [0, 1])
def test_failed_step_fails_only_its_requests(
    fake_engine: Callable[..., Engine], lookahead: int, method: str
) -> None:
    """Those that wait for a slot are served by the next steps."""
    engine = fake_engine(max_batch_size=1, lookahead=lookahead)
    go_on, failing = getattr(engine._session, method), threading.Event()

    def fails_once(*arguments: Any, **options: Any) -> Any:
        assert failing.wait(PATIENCE)
        if next(failures, False):
            raise RuntimeError("device lost")
        return go_on(*arguments, **options)

    failures = iter([True])
    setattr(engine._session, method, fails_once)
    with engine.serve() as server:
        first, waiting, later = Caller(), Caller(), Caller()
        server.submit([3], on_event=first, stop_token_ids=())
        server.submit([3], on_event=waiting, max_tokens=6)
        failing.set()
        assert first.done.wait(PATIENCE)
        assert isinstance(first.end, EngineError)
        assert "a step failed: RuntimeError: device lost" in str(first.end)
        waiting.wait()
        server.submit([3], on_event=later, max_tokens=6)
        later.wait()
        assert server.stats.waiting == 0
    (expected,) = fake_engine().generate([[3]], max_tokens=6)
    assert waiting.token_ids == later.token_ids == expected.token_ids


@pytest.mark.parametrize("lookahead", [0, 1])
def test_failed_text_fails_only_its_request(
    text_engine: Engine, monkeypatch: pytest.MonkeyPatch, lookahead: int
) -> None:
    text_engine._session.lookahead = lookahead  # type: ignore[misc]
    assert text_engine.tokenizer is not None
    decode, failures = text_engine.tokenizer.decode, iter([False, True])

    def fails_once(token_ids: Any) -> str:
        if next(failures, False):
            raise KeyError("no such piece")
        return decode(token_ids)

    monkeypatch.setattr(text_engine.tokenizer, "decode", fails_once)
    with text_engine.serve() as server:
        broken, others = Caller(), [Caller(), Caller()]
        server.submit("ab", on_event=broken, stop_token_ids=())
        assert broken.done.wait(PATIENCE)
        assert isinstance(broken.end, EngineError)
        assert "the text of this answer could not be made: KeyError: 'no such piece'" in str(
            broken.end
        )
        for caller in others:
            server.submit("ab", on_event=caller, max_tokens=9, stop_token_ids=())
        assert [caller.wait().output_tokens for caller in others] == [9, 9]
        assert (server.stats.waiting, len(server._engine_thread._served)) == (0, 0)
    (expected,) = text_engine.generate(["ab"], max_tokens=9, stop_token_ids=())
    assert [caller.text for caller in others] == [expected.text] * 2


class PanicError(BaseException):
    """As a panic of the tokenizers library: no Exception."""


@pytest.mark.parametrize("error", [SystemExit, PanicError])
@pytest.mark.parametrize("place", ["on_event", "is_alive", "text", "on_stats"])
def test_foreign_code_ends_its_own_request_only(
    text_engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    error: type[BaseException],
) -> None:
    """Twice, since a second failure must not lock the engine either."""

    def fail(*_: Any) -> Any:
        raise error("foreign")

    assert text_engine.tokenizer is not None
    decode = text_engine.tokenizer.decode
    panics = text_engine.generate([[9, 9]], max_tokens=4, stop_token_ids=())[0].token_ids
    if place == "text":
        monkeypatch.setattr(
            text_engine.tokenizer,
            "decode",
            lambda ids: fail() if list(ids) == panics[: len(list(ids))] else decode(ids),
        )
    alone = text_engine.generate([[3, 4]], max_tokens=30, stop_token_ids=())[0].token_ids
    with text_engine.serve(on_stats=fail if place == "on_stats" else lambda _: None) as server:
        innocent = Caller()
        server.submit([3, 4], on_event=innocent, max_tokens=30, stop_token_ids=())
        for _ in range(2):
            server.submit(
                [9, 9],
                on_event=fail if place == "on_event" else Caller(),
                is_alive=fail if place == "is_alive" else lambda: True,
                max_tokens=60,
                stop_token_ids=(),
            )
        innocent.wait()
        later = Caller()
        server.submit([3, 4], on_event=later, max_tokens=30, stop_token_ids=())
        later.wait()
        assert server.alive
        assert server.failed is None
    assert not server.alive
    assert innocent.token_ids == later.token_ids == alone
    assert (
        text_engine.generate([[3, 4]], max_tokens=30, stop_token_ids=())[0].token_ids == alone
    )


@pytest.mark.parametrize("lookahead", [0, 1])
def test_failed_prefill_leaves_the_other_slots(
    fake_engine: Callable[..., Engine], lookahead: int
) -> None:
    """The longest prompt of a machine short of memory must not end its neighbours."""
    engine = fake_engine(lookahead=lookahead)
    session: Any = engine._session
    prefill = session.prefill

    def short_of_memory(slot: int, input_ids: Any, *, draft: bool) -> None:
        if 9 in input_ids:
            raise MemoryError
        prefill(slot, input_ids, draft=draft)

    session.prefill = short_of_memory
    (expected,) = fake_engine().generate([[4]], max_tokens=40, stop_token_ids=())
    with engine.serve() as server:
        good, bad, later = Caller(), Caller(), Caller()
        with server._engine_thread._changed:  # both before the first step
            server.submit([4], on_event=good, max_tokens=40, stop_token_ids=())
            server.submit([5, 9], on_event=bad, max_tokens=40, stop_token_ids=())
        assert bad.done.wait(PATIENCE)
        assert "a step failed: MemoryError" in str(bad.end)
        server.submit([4], on_event=later, max_tokens=40, stop_token_ids=())
        good.wait()
        later.wait()
    assert good.token_ids == later.token_ids == expected.token_ids


def test_failed_move_loses_no_request(fake_engine: Callable[..., Engine]) -> None:
    """Slots are then in doubt: everyone in them hears of it, and the engine goes on."""
    engine = fake_engine()
    session: Any = engine._session
    move, failures = session.move_slot, iter([True])

    def fails_once(src: int, dst: int) -> None:
        if next(failures, False):
            raise RuntimeError("device lost")
        move(src, dst)

    session.move_slot = fails_once
    with engine.serve() as server:
        callers = [Caller() for _ in range(3)]
        with server._engine_thread._changed:
            for caller, max_tokens in zip(callers, (5, 60, 60), strict=True):
                server.submit([4], on_event=caller, max_tokens=max_tokens, stop_token_ids=())
        callers[0].wait()
        for caller in callers[1:]:
            assert caller.done.wait(PATIENCE)
            assert "a step failed: RuntimeError: device lost" in str(caller.end)
        later = Caller()
        server.submit([4], on_event=later, max_tokens=7)
        later.wait()


def test_failed_engine_thread_gives_the_engine_back(
    fake_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even by what is no Exception; its state tells that it is gone."""
    engine = fake_engine()

    def leave() -> None:
        raise SystemExit("gone")

    with engine.serve() as server:
        assert server.alive
        monkeypatch.setattr(server._engine_thread, "_sweep", leave)
        caller = Caller()
        server.submit([3], on_event=caller)
        assert caller.done.wait(PATIENCE)
        assert str(caller.end) == "the engine thread failed: SystemExit: gone"
        server._engine_thread._thread.join(PATIENCE)
        assert not server.alive
        assert str(server.failed) == "the engine thread failed: SystemExit: gone"
        with pytest.raises(EngineError, match="load it again: the engine thread failed"):
            server.submit([3], on_event=Caller())
    assert engine.generate([[3]], max_tokens=2), "the engine is free again"


def test_failed_engine_thread_says_why(
    fake_engine: Callable[..., Engine],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = fake_engine()
    with engine.serve() as server:
        monkeypatch.setattr(server._engine_thread, "_sweep", lambda: 1 // 0)
        caller = Caller()
        server.submit([3], on_event=caller)
        assert caller.done.wait(PATIENCE)
        assert "the engine thread failed: ZeroDivisionError: integer division" in str(
            caller.end
        )
        server._engine_thread._thread.join(PATIENCE)
        with pytest.raises(
            EngineError,
            match="takes no more requests, load it again: the engine thread failed: Zero",
        ):
            server.submit([3], on_event=Caller())
    assert "ZeroDivisionError" in caplog.text
    assert engine.generate([[3]], max_tokens=2), "the engine is free again"


def test_failing_caller_does_not_stop_others(fake_engine: Callable[..., Engine]) -> None:
    def broken(_: Event) -> None:
        raise ValueError("no")

    with fake_engine().serve() as server:
        caller = Caller()
        server.submit([3], on_event=broken)
        server.submit([4], on_event=caller, is_alive=lambda: 1 / 1 > 0)
        caller.wait()


def test_closing_ends_everything(fake_engine: Callable[..., Engine]) -> None:
    engine = fake_engine(max_batch_size=1)
    gate = Gate(engine)
    server: EngineServer = engine.serve()
    callers = [Caller(), Caller()]
    for caller in callers:
        server.submit([3], on_event=caller)
    with pytest.raises(EngineError, match="in the middle of another stream"):
        engine.generate([[3]])
    closing = threading.Thread(target=server.close)
    closing.start()
    gate.let()
    closing.join(PATIENCE)
    assert not closing.is_alive()
    for caller in callers:
        assert caller.done.wait(PATIENCE)
    assert isinstance(callers[1].end, ClosedError)
    assert "the engine was closed before this request had ended" in str(callers[1].end)
    with pytest.raises(ClosedError, match="is being closed and takes no more requests"):
        server.submit([3], on_event=Caller())


@pytest.mark.parametrize("lookahead", [0, 1])
def test_closing_may_let_requests_end(
    fake_engine: Callable[..., Engine], lookahead: int
) -> None:
    engine = fake_engine(max_batch_size=1, lookahead=lookahead)
    server = engine.serve()
    callers = [Caller() for _ in range(4)]
    for caller in callers:
        server.submit([3], on_event=caller, max_tokens=20)
    server.close(drain_seconds=PATIENCE)
    assert all(caller.wait().finish_reason != "cancelled" for caller in callers)
