"""One part in a process of its own, with a limit of time: it may crash or hang, and fails alone.

`python -m plugins.bench.gpu_check.part_process FUNCTION ROWS FOLDER SIZE [ARGUMENT ...]` is what
runs there.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from plugins.bench.gpu_check.parts import Part
from plugins.bench.gpu_check.rows import (
    FAILED,
    OK,
    SKIPPED,
    Check,
    SkippedError,
    described,
    read_rows,
)

ROOT = Path(__file__).resolve().parents[3]
_SKIPPED_STATUS = 77  # exit status of a part that cannot be tried here


def run_part(part: Part, folder: Path, *, small: bool, limit: float) -> dict[str, Any]:
    """Run a part and return its report: name, result, reason, seconds and rows.

    After `limit` seconds it is ended, with all processes that it has started.
    """
    rows, log = folder / f"{part.name}.jsonl", folder / f"{part.name}.log"
    command = [sys.executable, "-m", __name__, part.function, str(rows), str(folder)]
    command += ["small" if small else "full", *part.arguments]
    start = time.monotonic()
    with log.open("w", encoding="utf-8") as output:
        # A session of its own: at the limit all of its processes are ended together.
        process = subprocess.Popen(
            command, stdout=output, stderr=output, cwd=ROOT, start_new_session=True
        )
        try:
            status: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            _end(process)
            status = None
        except BaseException:  # an interruption, which a session of its own does not hear
            _end(process)
            raise
    found = read_rows(rows)
    result, reason = _outcome(status, limit, found, log)
    took = round(time.monotonic() - start, 1)
    return {
        "name": part.name,
        "result": result,
        "reason": reason,
        "seconds": took,
        "rows": found,
    }


def _end(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _outcome(
    status: int | None, limit: float, rows: list[dict[str, Any]], log: Path
) -> tuple[str, str]:
    last = " | ".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-1:])
    if status is None:
        return FAILED, f"ended after its limit of {limit:.0f} s"
    if status == _SKIPPED_STATUS:
        return SKIPPED, last
    if status < 0:
        return FAILED, f"ended by {signal.Signals(-status).name}: {last}"
    if status:
        return FAILED, f"exit status {status}: {last}"
    wrong = sum(row["result"] == FAILED for row in rows)
    if wrong:
        return FAILED, f"{wrong} of {len(rows)} cases failed"
    return OK, ""


def main() -> None:
    """Run a part's function in this process."""
    function, rows, folder, size, *arguments = sys.argv[1:]
    module, name = function.split(":")
    check = Check(Path(rows), Path(folder), small=size == "small")
    try:
        getattr(import_module(module), name)(check, *arguments)
    except SkippedError as reason:
        sys.stderr.write(f"{reason}\n")
        sys.exit(_SKIPPED_STATUS)
    except ImportError as error:
        sys.stderr.write(f"{described(error)}\n")
        sys.exit(_SKIPPED_STATUS)


if __name__ == "__main__":
    main()
