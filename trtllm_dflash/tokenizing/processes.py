"""Processes that run foreign code, seen from outside: started, asked, and given up at a limit."""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtllm_dflash.tokenizing import framing
from trtllm_dflash.tokenizing.limits import MAX_MESSAGE_BYTES, CallLimits

_START_SECONDS = 180  # importing transformers from a cold disk on a busy machine
_FORK_SECONDS = 60
_SERVER = "trtllm_dflash.tokenizing.fork_server"
_PACKAGE_PARENT = str(Path(__file__).resolve().parents[2])
_ENVIRONMENT = {
    "PYTHONSAFEPATH": "1",  # `python -m` would also import from the working directory
    "TOKENIZERS_PARALLELISM": "false",  # threads do not survive a fork
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "USE_TORCH": "0",
    "RUST_BACKTRACE": "0",  # of a panic, whose text is enough
}


class ProcessEndedError(Exception):
    """A process ended, or was ended at a limit, before it answered.

    `status` is its exit code or -signal, None if nobody knows. `given_up` tells whether this side
    ended it.
    """

    def __init__(self, status: int | None, *, given_up: bool) -> None:
        super().__init__()
        self.status = status
        self.given_up = given_up

    @property
    def was_killed(self) -> bool:
        """Tell whether somebody else ended it: the kernel out of memory, or a user."""
        return not self.given_up and self.status in (None, -signal.SIGKILL)

    def describe(self, limits: CallLimits) -> str:
        """Return what happened, as the rest of a sentence that begins with "it"."""
        if self.status == -signal.SIGPROF:
            return f"it takes more than {limits.seconds:.3g} s of processor time"
        if self.given_up:
            return f"it has no usable answer after {limits.wall_seconds:.0f} s"
        if self.status == -signal.SIGABRT:
            return f"its native library gave up (SIGABRT){_last_words()}"
        if self.status is not None and self.status < 0:
            return f"its process ended by {signal.Signals(-self.status).name}"
        return f"its process ended with exit code {self.status}{_last_words()}"


class ForkServer:
    """A process that forks others; calls may come from any thread."""

    def __init__(self, connection: socket.socket, first_seconds: float = _FORK_SECONDS) -> None:
        """Take the socket to it; its first answer may take `first_seconds`."""
        self.connection = connection
        self._lock = threading.Lock()
        self._seconds = first_seconds

    def fork(self, message: Mapping[str, Any]) -> ForkedProcess:
        """Return a new process, which gets `message`.

        Raises:
            OSError: if this process has ended, or does not answer.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                answer = self._ask({"do": "fork", **message}, theirs.fileno())
            except BaseException:
                ours.close()
                raise
        return ForkedProcess(ours, int(answer["pid"]), self)

    def end(self, pid: int) -> int | None:
        """End a forked process and return its exit code or -signal, None if nobody knows."""
        try:
            status: int | None = self._ask({"do": "end", "pid": pid})["status"]
        except OSError:
            return None
        return status

    def _ask(self, message: Mapping[str, Any], descriptor: int | None = None) -> Any:
        with self._lock:
            deadline = time.monotonic() + self._seconds
            self._seconds = _FORK_SECONDS
            try:
                framing.send(self.connection, message, descriptor)
                return framing.receive(
                    self.connection, max_bytes=MAX_MESSAGE_BYTES, deadline=deadline
                )
            except BaseException as error:
                # An answer that still came would be taken for the next one.
                self.connection.close()
                if isinstance(error, EOFError | framing.FramingError):
                    raise BrokenPipeError("the process has ended") from error
                raise


@dataclass
class ForkedProcess:
    """A forked process, which answers one message after the other."""

    connection: socket.socket
    pid: int
    parent: ForkServer

    def answer(self, limits: CallLimits, message: Mapping[str, Any] | None = None) -> Any:
        """Return the answer to a message; None waits for the one that comes by itself.

        Raises:
            ProcessEndedError: if the process ended, or had to be.
        """
        deadline = time.monotonic() + limits.wall_seconds
        try:
            if message is not None:
                self.connection.settimeout(limits.wall_seconds)
                framing.send(self.connection, message)
            return framing.receive(
                self.connection, max_bytes=MAX_MESSAGE_BYTES, deadline=deadline
            )
        except (TimeoutError, framing.FramingError):
            raise ProcessEndedError(self.end(), given_up=True) from None
        except (EOFError, OSError):
            raise ProcessEndedError(self.end(), given_up=False) from None
        except BaseException:  # Ctrl-C: an answer that still came would be the next call's
            self.end()
            raise

    def end(self) -> int | None:
        """End it; its exit code or -signal tells why, if it had ended before."""
        self.connection.close()
        return self.parent.end(self.pid)


@dataclass
class _Root:
    """The process that imports transformers, and forks one for each tokenizer."""

    process: subprocess.Popen[bytes]
    server: ForkServer
    stderr: int  # a file in memory


_root: _Root | None = None
_root_lock = threading.Lock()


def root_server() -> ForkServer:
    """Return this process's first fork server; it is started if there is none that runs."""
    global _root
    with _root_lock:
        if (
            _root is None
            or _root.server.connection.fileno() < 0
            or _root.process.poll() is not None
        ):
            _end_root()
            _root = _start_root()
        return _root.server


def _start_root() -> _Root:
    ours, theirs = socket.socketpair()
    stderr = os.memfd_create("dflash-tokenizer-stderr")
    # Of a process without standard streams the numbers below 3 are free, and the child's own.
    descriptor = fcntl.fcntl(theirs, fcntl.F_DUPFD_CLOEXEC, 3)
    theirs.close()
    # This package first: an entry that means the working directory is not handed on.
    modules = {"PYTHONPATH": os.pathsep.join(filter(None, [_PACKAGE_PARENT, *sys.path]))}
    try:
        process = subprocess.Popen(
            [python_executable(), "-m", _SERVER, str(descriptor)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            env=dict(os.environ) | modules | _ENVIRONMENT,
            pass_fds=[descriptor],
            start_new_session=True,  # Ctrl-C is for this process
        )
    finally:
        os.close(descriptor)
    return _Root(process, ForkServer(ours, _START_SECONDS), stderr)


def end_root_unless(is_needed: Callable[[], bool]) -> None:
    """End the root unless `is_needed`, which is asked while nobody can ask for the root."""
    with _root_lock:
        if not is_needed():
            _end_root()


def _end_root() -> None:
    """End the root; every process that it has forked ends with it."""
    global _root
    if _root is not None:
        _root.process.kill()
        _root.process.wait()
        _root.server.connection.close()
        os.close(_root.stderr)
        _root = None


def _last_words() -> str:
    """Return the last line that a process has written to stderr, behind a colon."""
    root = _root
    if root is None:
        return ""
    with suppress(OSError):
        size = os.fstat(root.stderr).st_size
        lines = os.pread(root.stderr, 4000, max(0, size - 4000)).decode(errors="replace")
        last = next((line for line in reversed(lines.splitlines()) if line.strip()), "")
        return f": {last.strip()[:300]}" if last else ""
    return ""


def _forget_root() -> None:
    """Leave the processes to the parent, of which this process is a fork."""
    global _root, _root_lock
    _root_lock = threading.Lock()
    if _root is not None:
        _root.server.connection.close()
        _root.process.returncode = 0  # not this process's child
        _root = None


atexit.register(_end_root)
os.register_at_fork(after_in_child=_forget_root)


def start_failure() -> str:
    """Return why the root did not start, as far as it has said."""
    return f"the tokenizer process does not start{_last_words()}"


def python_executable() -> str:
    """Return a Python interpreter of this process's version.

    In a program that embeds Python, as Triton's does, `sys.executable` may be that program.
    """
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    candidates = [sys.executable or ""]
    for prefix in (sys.prefix, sys.exec_prefix, sys.base_prefix):
        candidates.append(str(Path(prefix) / "bin" / name))
        candidates.append(str(Path(prefix) / "bin" / "python3"))
    for candidate in candidates:
        if Path(candidate).name.startswith("python") and os.access(candidate, os.X_OK):
            return candidate
    return shutil.which(name) or shutil.which("python3") or "python3"
