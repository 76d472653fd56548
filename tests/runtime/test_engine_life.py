"""An engine's life: closed once, and given back by whatever is dropped."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.patience import PATIENCE
from tests.runtime.callers import Caller, Gate
from trtllm_dflash.errors import ClosedError, EngineError
from trtllm_dflash.runtime.engine import Engine

EngineFactory = Callable[..., Engine]
LONG: dict[str, Any] = {"stop_token_ids": (), "max_tokens": 80}


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Run without the garbage collector."""
    gc.disable()
    yield
    gc.enable()


def leave(engine: Engine) -> None:
    for _ in engine.stream([[1, 2]], **LONG):
        break


def fail(engine: Engine) -> None:
    try:
        for _ in engine.stream([[1, 2]], **LONG):
            raise KeyError
    except KeyError:
        pass


def take_first(engine: Engine) -> None:
    next(iter(engine.stream([[1, 2]], **LONG)))


def take_with_zip(engine: Engine) -> None:
    assert len(list(zip(engine.stream([[1, 2]], **LONG), range(3), strict=False))) == 3


def forget(engine: Engine) -> None:
    stream = engine.stream([[1, 2]], **LONG)
    next(stream)
    del stream


def forget_server(engine: Engine) -> None:
    engine.serve().submit([1, 2], on_event=lambda _: None, **LONG)


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize(
    "drop", [leave, fail, take_first, take_with_zip, forget, forget_server]
)
def test_what_is_dropped_frees_the_engine(
    fake_engine: EngineFactory, drop: Callable[[Engine], None]
) -> None:
    engine = fake_engine()
    drop(engine)
    assert engine.generate([[1]], max_tokens=2)


def test_a_dropped_server_tells_its_callers(fake_engine: EngineFactory) -> None:
    engine = fake_engine(accuracy=0.0)
    gate = Gate(engine)
    server = engine.serve()
    caller = Caller()
    server.submit([3], on_event=caller, **LONG)
    assert gate.reached.wait(PATIENCE)
    threading.Timer(0.05, gate.let).start()
    del server
    assert caller.done.wait(PATIENCE)
    assert isinstance(caller.end, ClosedError)


def test_a_closed_engine_refuses_every_call(text_engine: Engine) -> None:
    engine = text_engine
    stream = engine.stream(["ab"], **LONG)
    next(stream)
    engine.close()
    engine.close()
    assert "closed" in repr(engine)
    calls: list[Callable[[], Any]] = [
        lambda: engine.generate([[1]]),
        lambda: engine.stream([[1]]),
        lambda: engine.chat("hi"),
        engine.serve,
        stream.generations,
    ]
    for call in calls:
        with pytest.raises(EngineError, match="closed"):
            call()


def test_closing_frees_the_session(fake_engine: EngineFactory) -> None:
    engine = fake_engine()
    session = weakref.ref(engine._session)
    finished, begun, untouched = (engine.stream([[1]], **LONG) for _ in range(3))
    finished.generations()
    begun.close()
    server = engine.serve()
    with engine:
        assert session() is not None
    assert session() is None
    assert len(finished.generations()) == 1, "what was complete stays"
    assert not begun.finished
    assert not untouched.finished
    assert not server.alive
    assert server.stats.slots_in_use == 0


def test_closing_ends_the_engine_thread(fake_engine: EngineFactory) -> None:
    engine = fake_engine()
    with engine.serve() as server:
        engine.close()
        assert not server.alive
        with pytest.raises(ClosedError):
            server.submit([3], on_event=Caller())


def test_no_closing_inside_a_step(fake_engine: EngineFactory) -> None:
    engine = fake_engine()
    gate = Gate(engine)
    stream = engine.stream([[3]], **LONG)
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.extend(stream.generations()))
    thread.start()
    assert gate.reached.wait(PATIENCE)
    with pytest.raises(EngineError, match="generating in another thread"):
        engine.close()
    gate.let()
    thread.join(PATIENCE)
    assert len(answers[0].token_ids) == 80
    engine.close()
