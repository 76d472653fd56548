"""What `Engine.serve` gives out: an engine thread that ends when nobody holds it any more."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from trtllm_dflash.errors import ClosedError, DFlashError
from trtllm_dflash.options.checks import check_callable
from trtllm_dflash.options.queueing import Queueing
from trtllm_dflash.options.sampling import SamplingOptions
from trtllm_dflash.runtime.engine_thread import EngineThread
from trtllm_dflash.runtime.outputs import EngineStats, OnEvent
from trtllm_dflash.runtime.prompt_inputs import Prompt
from trtllm_dflash.runtime.request_handle import RequestHandle

if TYPE_CHECKING:
    from typing_extensions import Unpack


def _always_alive() -> bool:
    return True


class EngineServer:
    """Serves an engine to many callers at once; users call `Engine.serve`.

    Leave its `with` block, `close` it or drop it to end what runs and give the engine back. A
    running thread holds itself alive, so it is this object that can be dropped.
    """

    def __init__(self, engine_thread: EngineThread) -> None:
        """Take the engine thread, which nobody else may hold."""
        self._thread: EngineThread | None = engine_thread
        self._last_stats = engine_thread.stats
        self._last_failure: DFlashError | None = None

    def __enter__(self) -> EngineServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # At the interpreter's end the thread has stopped wherever it was.
        if not sys.is_finalizing() and hasattr(self, "_last_failure"):
            self.close()

    def submit(
        self,
        prompt: Prompt,
        *,
        on_event: OnEvent,
        is_alive: Callable[[], bool] = _always_alive,
        queueing: Queueing | None = None,
        **options: Unpack[SamplingOptions],
    ) -> RequestHandle:
        """Check a request at once and put it into the queue; from any thread.

        The handle that comes back cancels all `n` answers.

        prompt      text, or token ids.
        on_event    called by the engine thread with a `RequestOutput` for each step; the last one
                    says how the request ended. Or called with an error. Steps wait for it, so it
                    should hand on and return. With n > 1 each answer ends by itself.
        is_alive    polled by the engine thread now and then; False cancels.
        queueing    its priority and its limit of time. A request that is overdue is told so by a
                    DeadlineError, between two steps.
        options     as for `Engine.generate`.

        Raises:
            UsageError: for a bad prompt or option.
            BusyError: if the queue is full; it says when to come back.
            ClosedError: if it is being closed.
            EngineError: if the engine thread has failed, or the tokenizer cannot be used.
        """
        check_callable("on_event", on_event)
        check_callable("is_alive", is_alive)
        return self._engine_thread.submit(
            prompt, on_event=on_event, is_alive=is_alive, queueing=queueing, **options
        )

    @property
    def _engine_thread(self) -> EngineThread:
        if self._thread is None:
            raise ClosedError(
                "this engine is being closed and takes no more requests. It may be sent again."
            )
        return self._thread

    @property
    def failed(self) -> DFlashError | None:
        """Return why the engine thread had to end, None if it did not; from any thread."""
        return self._last_failure if self._thread is None else self._thread.failed

    @property
    def alive(self) -> bool:
        """Tell whether requests are taken and answered; from any thread."""
        return self._thread is not None and self._thread.alive

    @property
    def stats(self) -> EngineStats:
        """Return how full the engine is now; from any thread."""
        return self._last_stats if self._thread is None else self._thread.stats

    def close(self, *, drain_seconds: float = 0.0) -> None:
        """Take no more requests, give the others `drain_seconds`, and wait for the engine thread.

        Requests that have not ended by then fail. A second call changes nothing.
        """
        thread = self._thread
        if thread is None:
            return
        thread.close(drain_seconds=drain_seconds)
        self._last_stats = thread.stats
        self._last_failure = thread.failed
        self._thread = None  # it must not keep the session's memory
