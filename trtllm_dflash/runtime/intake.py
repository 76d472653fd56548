"""Threads that make prompts of requests, so that a slow chat template makes only chats wait.

Tokenizers and templates are foreign code with a limit of time. A request that takes all of it would
hold up Triton's thread, and with it every other request of the instance.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from trtllm_dflash.errors import BusyError, ClosedError

Job = Callable[[], object]
ROLES = ("chat", "encode")  # each has a process of its own in `tokenizing`


class Intake:
    """One thread for chats and one for plain prompts, each with a bounded queue."""

    def __init__(self, limit: int) -> None:
        """Start the threads; `limit`: requests that may wait for each."""
        self._limit = limit
        self._lock = threading.Lock()
        self._is_closed = False
        self._jobs: dict[str, queue.Queue[Job | None]] = {}
        self._threads = []
        for role in ROLES:
            self._jobs[role] = queue.Queue(limit)
            thread = threading.Thread(
                target=self._work, args=(role,), name=f"dflash-{role}", daemon=True
            )
            self._threads.append(thread)
            thread.start()

    def put(self, role: str, job: Job) -> None:
        """Queue a job, which raises nothing.

        Raises:
            BusyError: if the queue is full.
            ClosedError: after `close`, which nothing may follow.
        """
        with self._lock:
            if self._is_closed:
                raise ClosedError(
                    "this engine is being closed and takes no more requests. It may be sent again."
                )
            try:
                self._jobs[role].put_nowait(job)
            except queue.Full:
                raise BusyError(
                    f"{self._limit} requests wait to be tokenized, and the queue holds no more."
                ) from None

    def close(self) -> None:
        """Do what is queued, and end. A second call waits for the first."""
        with self._lock:
            was_closed, self._is_closed = self._is_closed, True
        for jobs in () if was_closed else self._jobs.values():
            jobs.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self, role: str) -> None:
        while (job := self._jobs[role].get()) is not None:
            job()
