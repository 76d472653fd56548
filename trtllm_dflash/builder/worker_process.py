"""Runs the builder process. If it dies, an error says how, and where its log is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from trtllm_dflash import errors
from trtllm_dflash.atomic.work_folder import work_folder
from trtllm_dflash.builder.job import BuildRequest
from trtllm_dflash.errors import BuildError
from trtllm_dflash.log import Progress

WORKER = (sys.executable, "-m", "trtllm_dflash.builder.worker")
_LAST_LINES = 12
_SIGNAL_HINTS: dict[int, str] = {
    signal.SIGKILL: "; the kernel does this when memory runs out",
    signal.SIGABRT: "; a native library gave up",
    signal.SIGSEGV: "; a native library crashed",
    signal.SIGBUS: "; usually a weight file that was cut short while it was being read",
}
# The parser opens a library of such a name at its first plugin node. Without it, it aborts the
# process. The files of the wheels have a version in their names. This was seen with TensorRT-RTX,
# and is inferred for TensorRT.
_WHEEL_LIBRARIES = {"tensorrt_rtx_libs": "libtensorrt_rtx.so", "tensorrt_libs": "libnvinfer.so"}
# glibc takes blocks from this size on from the system, and gives them back when they are freed.
# By itself it raises that size, and then keeps what TensorRT frees. For the demo pair that is a
# quarter more memory, for a twentieth less work.
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(1 << 16)}


def run_worker(request: BuildRequest, *, log: Path, progress: Progress) -> dict[str, Any]:
    """Return the result of a new process that serves `request` and writes to the end of `log`.

    Raises:
        BuildError: if it dies, with its exit status or signal and its last lines.
        DFlashError: of the class that it reported, for a known error.
    """
    with worker_environment() as environment, log.open("ab") as stderr:
        process = subprocess.Popen(
            WORKER,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=environment,
            # The terminal would send Ctrl-C to both, and this process handles it.
            start_new_session=True,
        )
        try:
            final = _follow(process, request, progress)
            status = process.wait()
        finally:
            process.kill()
            process.wait()
    if "error" in final:
        raise getattr(errors, final["error"])(f"{final['text']}\nThe builder's log is {log}")
    if status != 0 or "result" not in final:
        raise BuildError(
            f"{_describe_exit(status)}.\nIts log is {log}, and ends:\n{_tail(log)}"
        )
    result: dict[str, Any] = final["result"]
    return result


def _follow(
    process: subprocess.Popen[bytes], request: BuildRequest, progress: Progress
) -> dict[str, Any]:
    """Send the request, pass progress on, return the last other event ({} if there is none)."""
    assert process.stdin is not None
    assert process.stdout is not None
    with suppress(BrokenPipeError):  # it died at once, and its status says why
        process.stdin.write(request.to_json().encode() + b"\n")
        process.stdin.flush()
    final: dict[str, Any] = {}
    for line in process.stdout:
        event = json.loads(line)
        if "phase" in event:
            progress(event["phase"], event["done"], event["total"])
        else:
            final = event
    return final


def _describe_exit(status: int) -> str:
    if status >= 0:
        return f"the builder process ended with exit status {status} and no engine"
    number = -status
    name = f" ({signal.Signals(number).name})" if number in set(signal.Signals) else ""
    return f"the builder process was killed by signal {number}{name}{_SIGNAL_HINTS.get(number, '')}"


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace", encoding="utf-8").splitlines()[-_LAST_LINES:]
    return "\n".join(f"  {line}" for line in lines)


@contextmanager
def worker_environment() -> Iterator[dict[str, str]]:
    """Yield the builder's environment.

    It has this process's modules, and TensorRT's library under the name that its parser opens. The
    allocator returns memory, unless the user has set it. LD_LIBRARY_PATH is read once, at the start
    of a process, so it is set for the new one.
    """
    with work_folder("dflash-trt-lib-") as folder:
        # PYTHONSAFEPATH, since `python -m` would also import from the working directory.
        modules = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONSAFEPATH": "1"}
        environment = _MALLOC | dict(os.environ) | modules
        found = False
        for module, name in _WHEEL_LIBRARIES.items():
            spec = find_spec(module)
            for home in (spec and spec.submodule_search_locations) or ():
                for library in sorted(Path(home).glob(f"{name}.[0-9]*"))[:1]:
                    (folder / name).symlink_to(library)
                    found = True
        if found:
            known = environment.get("LD_LIBRARY_PATH")
            environment["LD_LIBRARY_PATH"] = (
                f"{folder}{os.pathsep}{known}" if known else str(folder)
            )
        yield environment
