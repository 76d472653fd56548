"""Schedulers, callers of them, and a gate that holds an engine."""

from __future__ import annotations

import threading
from typing import Any

from tests.patience import PATIENCE
from trtllm_dflash.errors import DFlashError
from trtllm_dflash.runtime.engine import Engine
from trtllm_dflash.runtime.outputs import Event, FinishInfo, RequestOutput
from trtllm_dflash.runtime.scheduler import Scheduler


def scheduler_of(engine: Engine, prompt_tokens_per_step: int | None = None) -> Scheduler:
    """Return a scheduler on an engine's session, with so many prompt tokens between two steps."""
    return Scheduler(
        engine._session,
        vocab_size=engine.config.vocab_size,
        prompt_tokens_per_step=prompt_tokens_per_step,
    )


class Caller:
    """Collects the events of one request."""

    def __init__(self) -> None:
        self.pieces: list[RequestOutput] = []
        self.end: FinishInfo | DFlashError | None = None
        self.done = threading.Event()

    def __call__(self, event: Event) -> None:
        assert self.end is None, "an event after the last one"
        if isinstance(event, RequestOutput):
            self.pieces.append(event)
        self.end = event.finish_info if isinstance(event, RequestOutput) else event
        if self.end is not None:
            self.done.set()

    @property
    def token_ids(self) -> list[int]:
        return [token for piece in self.pieces for token in piece.token_ids]

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    def wait(self) -> FinishInfo:
        assert self.done.wait(PATIENCE), "no end came"
        assert isinstance(self.end, FinishInfo), self.end
        return self.end


class Gate:
    """Holds the engine's decode steps, or its prefills, until the test releases some."""

    def __init__(self, engine: Engine, method: str = "decode") -> None:
        self._permits = threading.Semaphore(0)
        self.reached = threading.Event()
        go_on = getattr(engine._session, method)

        def held(*arguments: Any, **options: Any) -> None:
            self.reached.set()
            assert self._permits.acquire(timeout=PATIENCE)
            go_on(*arguments, **options)

        setattr(engine._session, method, held)

    def let(self, steps: int = 10_000) -> None:
        self._permits.release(steps)
