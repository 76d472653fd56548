"""Failures around the engine thread: callers get the real error, others are served."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests.runtime.callers import WAIT, Caller, Gate
from trtllm_dflash.errors import ClosedError, EngineError
from trtllm_dflash.runtime.engine import Engine
from trtllm_dflash.runtime.engine_thread import EngineThread
from trtllm_dflash.runtime.outputs import Event


@pytest.mark.parametrize("method", ["decode", "prefill", "open_slot", "collect"])
@pytest.mark.parametrize("lookahead", [0, 1])
def test_failed_step_fails_only_its_requests(
    fake_engine: Callable[..., Engine], lookahead: int, method: str
) -> None:
    """Those that wait for a slot are served by the next steps."""
    engine = fake_engine(max_batch_size=1, lookahead=lookahead)
    go_on, failing = getattr(engine._session, method), threading.Event()

    def fails_once(*arguments: Any) -> Any:
        assert failing.wait(WAIT)
        if next(failures, False):
            raise RuntimeError("device lost")
        return go_on(*arguments)

    failures = iter([True])
    setattr(engine._session, method, fails_once)
    with engine.serve() as server:
        first, waiting, later = Caller(), Caller(), Caller()
        server.submit([3], on_event=first, stop_token_ids=())
        server.submit([3], on_event=waiting, max_tokens=6)
        failing.set()
        assert first.done.wait(WAIT)
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
        assert broken.done.wait(WAIT)
        assert isinstance(broken.end, EngineError)
        assert "the text of this answer could not be made: KeyError: 'no such piece'" in str(
            broken.end
        )
        for caller in others:
            server.submit("ab", on_event=caller, max_tokens=9, stop_token_ids=())
        assert [caller.wait().output_tokens for caller in others] == [9, 9]
        assert (server.stats.waiting, len(server._served)) == (0, 0)
    (expected,) = text_engine.generate(["ab"], max_tokens=9, stop_token_ids=())
    assert [caller.text for caller in others] == [expected.text] * 2


def test_failed_engine_thread_says_why(
    fake_engine: Callable[..., Engine],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = fake_engine()
    with engine.serve() as server:
        monkeypatch.setattr(server, "_sweep_cancelled", lambda: 1 // 0)
        caller = Caller()
        server.submit([3], on_event=caller)
        assert caller.done.wait(WAIT)
        assert "the engine thread failed: ZeroDivisionError: integer division" in str(
            caller.end
        )
        server._thread.join(WAIT)
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
    server: EngineThread = engine.serve()
    callers = [Caller(), Caller()]
    for caller in callers:
        server.submit([3], on_event=caller)
    with pytest.raises(EngineError, match="in the middle of another stream"):
        engine.generate([[3]])
    closing = threading.Thread(target=server.close)
    closing.start()
    gate.let()
    closing.join(WAIT)
    assert not closing.is_alive()
    for caller in callers:
        assert caller.done.wait(WAIT)
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
    server.close(drain_seconds=WAIT)
    assert all(caller.wait().finish_reason != "cancelled" for caller in callers)
