"""SIGTERM and SIGHUP as exceptions, so that what a command has begun is cleaned up."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def termination_as_exit() -> Iterator[None]:
    """Turn the first SIGTERM or SIGHUP in the block into SystemExit, with the shell's exit code.

    Later ones are ignored, since they would end the cleaning up. A signal that was ignored before
    stays so: that is how `nohup` lets a command outlive its terminal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python handles signals in the main thread only
        return
    previous: dict[signal.Signals, Any] = {}

    def leave(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - as handlers have
        for other in previous:
            signal.signal(other, signal.SIG_IGN)
        raise SystemExit(128 + number)

    for number in _SIGNALS:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            previous[number] = signal.getsignal(number)
    for number in previous:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
