"""The tokenizer processes, seen from inside.

The first one, `python -m trtllm_dflash.tokenizing.fork_server DESCRIPTOR`, imports transformers and
reads no foreign file. It forks a process for each tokenizer. That one reads the files, and forks a
process for each role: encode, render, decode. So one that dies is replaced in milliseconds.

Each ends as soon as the other end of its socket is closed, or the process that forked it is gone.
"""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from trtllm_dflash.tokenizing import framing
from trtllm_dflash.tokenizing.framing import reason
from trtllm_dflash.tokenizing.limits import MAX_MESSAGE_BYTES

if TYPE_CHECKING:
    from trtllm_dflash.tokenizing.library import Library

_PR_SET_PDEATHSIG = 1
_MAX_STDERR_BYTES = 1 << 20

ForkedMain = Callable[[socket.socket, dict[str, Any]], None]


def main() -> NoReturn:
    """Serve forks to the process at the other end of the socket, until it closes it."""
    control = socket.socket(fileno=int(sys.argv[1]))
    from trtllm_dflash.tokenizing.trial import Trial  # imports transformers

    gc.collect()
    gc.freeze()  # what is never collected stays shared between the forked processes
    _serve_forks(control, partial(_run_tokenizer, Trial))


def _serve_forks(control: socket.socket, forked_main: ForkedMain) -> NoReturn:
    statuses: dict[int, int] = {}  # of children that have ended and were not asked for
    while True:
        try:
            message, descriptor = framing.receive_with_descriptor(
                control, max_bytes=MAX_MESSAGE_BYTES
            )
        except (EOFError, OSError):
            os._exit(0)
        _reap(statuses)
        if message["do"] == "fork":
            assert descriptor is not None
            answer: dict[str, int | None] = {
                "pid": _fork(control, descriptor, forked_main, message)
            }
            os.close(descriptor)
        else:
            answer = {"status": _end(message["pid"], statuses)}
        with suppress(OSError):
            framing.send(control, answer)


def _fork(
    control: socket.socket, descriptor: int, forked_main: ForkedMain, message: dict[str, Any]
) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        control.detach()
        # Another process's socket, held open here, would hide that process's end.
        os.closerange(3, descriptor)
        os.closerange(descriptor + 1, os.sysconf("SC_OPEN_MAX"))
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == parent:
            forked_main(socket.socket(fileno=descriptor), message)
        status = 0
    except BaseException:  # noqa: BLE001 - a fork must not go on as its parent
        traceback.print_exc()
    os._exit(status)


def _reap(statuses: dict[int, int]) -> None:
    with suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            statuses[pid] = status


def _end(pid: int, statuses: dict[int, int]) -> int | None:
    """End a child and return its wait status, which of one that had ended by itself says why."""
    if pid in statuses:
        return os.waitstatus_to_exitcode(statuses.pop(pid))
    try:
        os.kill(pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except (ProcessLookupError, ChildProcessError):
        return None


def _run_tokenizer(
    library_type: type[Library], connection: socket.socket, message: dict[str, Any]
) -> None:
    """Read a tokenizer's files, tell its facts, then fork a process for each role."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _limit_file_size()
    loaded: list[Library] = []

    def load() -> Any:
        loaded.append(library_type.load(Path(message["directory"])))
        return loaded[0].facts()

    _limit_memory(message["memory_bytes"])
    answer = _within_limits(load, message)
    framing.send(connection, answer)
    if "value" in answer:
        gc.collect()
        gc.freeze()
        _serve_forks(connection, partial(_serve_calls, loaded[0]))


def _serve_calls(library: Library, connection: socket.socket, message: dict[str, Any]) -> None:
    _limit_memory(message["memory_bytes"])
    while True:
        try:
            call = framing.receive(connection, max_bytes=MAX_MESSAGE_BYTES)
        except (EOFError, OSError):
            return
        work = partial(getattr(library, call["do"]), *call["with"])
        answer = _within_limits(work, call)
        framing.send(connection, answer)
        if answer.get("broken"):
            return


def _within_limits(work: Callable[[], Any], message: dict[str, Any]) -> dict[str, Any]:
    """Return what `work` returns or raises; beyond its limits this process dies or says so."""
    # Its signal ends the process, also in the middle of native code.
    signal.setitimer(signal.ITIMER_PROF, message["seconds"])
    try:
        return {"value": work()}
    except MemoryError:
        return {"problem": "it needs too much memory", "type": "MemoryError", "broken": True}
    except Exception as error:  # noqa: BLE001 - foreign code raises anything
        return {"problem": reason(error), "type": type(error).__name__}
    except BaseException as error:  # noqa: BLE001 - a panic; the library may be broken
        return {"problem": reason(error), "type": type(error).__name__, "broken": True}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _limit_file_size() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = _MAX_STDERR_BYTES
    if most != resource.RLIM_INFINITY:
        limit = min(limit, most)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def _limit_memory(memory_bytes: int) -> None:
    pages = int(Path("/proc/self/statm").read_text("utf-8").split()[0])
    limit = pages * resource.getpagesize() + memory_bytes
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    if most != resource.RLIM_INFINITY:
        limit = min(limit, most)
    resource.setrlimit(resource.RLIMIT_AS, (limit, most))


if __name__ == "__main__":
    main()
