"""The events of one HTTP request's answers, from the engine thread to a coroutine."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from trtllm_dflash.errors import DFlashError
from trtllm_dflash.http_server.scrape import ModelMetrics
from trtllm_dflash.runtime.outputs import Event, OnEvent, RequestOutput
from trtllm_dflash.runtime.request_handle import RequestHandle

Indexed = tuple[int, RequestOutput]


class AnswerStream:
    """What the prompts of a request get: outputs by the index of their answer, or an error.

    All that has come since the last look is taken at once, so that a slow client makes few and
    large writes.
    """

    def __init__(self, n: int, metrics: ModelMetrics) -> None:
        """Expect `n` answers to each prompt; called in the event loop that will read."""
        self._n = n
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._is_signalled = False
        self._arrived = deque[tuple[int, Event]]()
        self._handles: list[RequestHandle] = []
        self._num_to_end = 0
        self._has_failed = False
        self._is_cancelled = False

    def sender(self, prompt_index: int) -> OnEvent:
        """Return what the engine thread calls for a prompt."""
        first = prompt_index * self._n

        def on_event(event: Event) -> None:
            self._count(event)
            index = first + event.sample_index if isinstance(event, RequestOutput) else first
            self._arrived.append((index, event))
            if not self._is_signalled:
                self._is_signalled = True
                with suppress(RuntimeError):  # the loop has ended
                    self._loop.call_soon_threadsafe(self._wake.set)

        return on_event

    def add(self, handle: RequestHandle) -> None:
        """Take the handle of a prompt that was submitted; from any thread."""
        self._handles.append(handle)
        self._num_to_end += self._n
        if self._is_cancelled:
            handle.cancel()

    def cancel(self) -> None:
        """End all answers with what they have by then; from any thread."""
        self._is_cancelled = True
        for handle in list(self._handles):
            handle.cancel()

    @property
    def is_over(self) -> bool:
        """Tell whether all answers have ended and were read."""
        return not self._num_to_end

    async def read(self) -> list[Indexed]:
        """Wait for outputs, and return all that have come, at least one.

        Raises:
            DFlashError: for an answer that failed; the others are cancelled.
        """
        found: list[Indexed] = []
        while not found:
            await self._wake.wait()
            self._wake.clear()
            self._is_signalled = False
            while self._arrived:
                index, event = self._arrived.popleft()
                if not isinstance(event, RequestOutput):
                    self._num_to_end = 0
                    self.cancel()
                    raise event
                self._num_to_end -= event.finish_info is not None
                found.append((index, event))
        return found

    def fail(self, error: DFlashError) -> None:
        """Count a request that is not answered, once."""
        if not self._has_failed:
            self._has_failed = True
            self._metrics.add_failure(error)

    def _count(self, event: Event) -> None:
        if not isinstance(event, RequestOutput):
            self.fail(event)
        elif event.finish_info is not None and not self._has_failed:
            self._metrics.add(event.finish_info)


Submit = Callable[[AnswerStream], None]
