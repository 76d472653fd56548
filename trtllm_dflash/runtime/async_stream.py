"""The answers to some prompts, as they come from an engine thread to a coroutine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from trtllm_dflash.errors import DeadlineError, DFlashError, EngineError
from trtllm_dflash.options.queueing import Queueing
from trtllm_dflash.runtime.outputs import Chunk, Event, Generation
from trtllm_dflash.runtime.request_handle import RequestHandle
from trtllm_dflash.runtime.stream import generation

# Sends one prompt to the engine thread, with `on_event` as its only argument.
Submit = Callable[..., RequestHandle]
_Number = int  # of a prompt


class Room:
    """The places that an engine thread has for requests, which coroutines wait for."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._places = asyncio.Semaphore(capacity)
        self._entrance = asyncio.Lock()

    async def enter(self, count: int) -> None:
        """Wait for `count` places; a request that can never fit waits for all, and is refused."""
        async with self._entrance:  # one at a time, so that no two wait for each other's places
            taken = 0
            try:
                for _ in range(min(count, self._capacity)):
                    await self._places.acquire()
                    taken += 1
            except BaseException:
                self._give_back(taken)
                raise

    def leave(self, count: int) -> None:
        """Give `count` places back, of those taken together."""
        self._give_back(min(count, self._capacity))

    def _give_back(self, count: int) -> None:
        for _ in range(count):
            self._places.release()


class _Progress:
    """What the stream, its sender and the engine thread know of the requests."""

    def __init__(self, num_prompts: int, n: int, room: Room) -> None:
        self.n = n
        self.room = room
        self.loop = asyncio.get_running_loop()
        self.arrived = asyncio.Queue[tuple[_Number, Event] | BaseException]()
        self.handles: dict[_Number, RequestHandle] = {}
        self.num_to_end = num_prompts * n
        self.num_running = dict.fromkeys(range(num_prompts), n)
        self.cancelled = False

    def note(self, number: _Number, event: Event) -> None:
        """Take an event in the engine thread; the loop may be gone by now."""
        with suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self._note, number, event)

    def _note(self, number: _Number, event: Event) -> None:
        if isinstance(event, DFlashError) or event.finish_info is not None:
            self.num_running[number] -= 1
            if not self.num_running[number]:
                self.room.leave(self.n)
        self.arrived.put_nowait((number, event))

    def send(self, number: _Number, submit: Submit) -> None:
        """Submit a prompt, in a thread that may: encoding takes time."""
        handle = submit(on_event=lambda event: self.note(number, event))
        self.handles[number] = handle
        if self.cancelled:
            handle.cancel()

    def cancel(self) -> None:
        """Cancel all requests, also one that is being sent."""
        self.cancelled = True
        for handle in list(self.handles.values()):
            handle.cancel()


class AsyncStream:
    """Asynchronous iterator over `Chunk`; the chunks of one answer, joined, are its `Generation`.

    Cancelling the task that waits for a chunk, closing or dropping the stream cancels its requests.
    """

    def __init__(
        self, submits: Sequence[Submit], n: int, room: Room, queueing: Queueing
    ) -> None:
        """Take what sends each prompt; nothing is sent before the first chunk is asked for."""
        self._submits = submits
        self._queueing = queueing
        self._n = n
        self._room = room
        self._progress: _Progress | None = None
        self._sender: asyncio.Task[None] | None = None
        self._is_over = False

    def __aiter__(self) -> AsyncStream:
        return self

    async def __anext__(self) -> Chunk:
        progress = self._started()
        if self._is_over or not progress.num_to_end:
            raise StopAsyncIteration
        try:
            item = await progress.arrived.get()
        except asyncio.CancelledError:
            self._cancel()
            raise
        failure = item if isinstance(item, BaseException) else _failure(item[1])
        if failure is not None:
            self._cancel()
            raise failure
        assert not isinstance(item, BaseException)
        number, event = item
        assert not isinstance(event, DFlashError)
        progress.num_to_end -= event.finish_info is not None
        return Chunk(
            prompt_index=number,
            token_ids=event.token_ids,
            text=event.text,
            reasoning=event.reasoning,
            sample_index=event.sample_index,
            logprobs=event.logprobs,
            tool_calls=event.tool_calls,
            sources=event.sources,
            token_texts=event.token_texts,
        )

    async def generations(self) -> list[Generation]:
        """Run to the end and return all answers, prompt by prompt.

        Raises:
            EngineError: if the stream was closed before.
        """
        async for _ in self:
            pass
        progress = self._started()
        if self._is_over:
            raise EngineError("this stream was closed before its answers were complete.")
        if self._sender is not None:
            await self._sender  # the last answer may come before its handle does
        answers = []
        for number in range(len(self._submits)):
            first = progress.handles[number]
            handles = (first, *first.others)
            answers += [generation(handle.request, handle.text) for handle in handles]
        return answers

    async def aclose(self) -> None:
        """Cancel what has not ended."""
        self._cancel()

    def __del__(self) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self._cancel()

    def _started(self) -> _Progress:
        if self._progress is None:
            self._progress = _Progress(len(self._submits), self._n, self._room)
            self._sender = asyncio.create_task(
                _send_all(self._progress, self._submits, self._queueing)
            )
        return self._progress

    def _cancel(self) -> None:
        if self._progress is None or not self._progress.num_to_end:
            return
        self._is_over = True
        self._progress.cancel()
        if self._sender is not None:
            self._progress.loop.call_soon_threadsafe(self._sender.cancel)


def _failure(event: Event) -> DFlashError | None:
    return event if isinstance(event, DFlashError) else None


async def _send_all(progress: _Progress, submits: Sequence[Submit], queueing: Queueing) -> None:
    """Send prompts as there is room; the first that is refused ends the stream."""
    for number, submit in enumerate(submits):
        try:
            async with asyncio.timeout(queueing.seconds_left()):
                await progress.room.enter(progress.n)
        except TimeoutError:
            progress.arrived.put_nowait(
                DeadlineError(
                    f"prompt {number} is not even in the engine's queue after"
                    f" {queueing.timeout_seconds:g} s (timeout_seconds): the queue was full. Give"
                    " it more time, or ask later."
                )
            )
            return
        sent: Any = asyncio.ensure_future(asyncio.to_thread(progress.send, number, submit))
        try:
            await asyncio.shield(sent)
        except asyncio.CancelledError:
            sent.add_done_callback(lambda done: _leave_if_refused(progress, done))
            raise
        except Exception as refusal:  # noqa: BLE001 - whoever waits must hear of it
            progress.room.leave(progress.n)
            progress.arrived.put_nowait(refusal)
            return


def _leave_if_refused(progress: _Progress, sent: asyncio.Future[None]) -> None:
    """Give the places back of a prompt that was refused after its stream had ended."""
    if sent.cancelled() or sent.exception() is not None:
        progress.room.leave(progress.n)
