"""compute-sanitizer over the small cases of every kernel, where its binary is found."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from plugins.bench.gpu_check.correct import check_kernels
from plugins.bench.gpu_check.parts import KERNEL_SOURCES
from plugins.bench.gpu_check.rows import FAILED, OK, Check, SkippedError, read_rows

_NAME = "compute-sanitizer"
_TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
_SECONDS = 60  # of a tool
_FOUND = 99  # exit status for what a tool finds
_SUMMARY = re.compile(r"^=+ (.*(?:SUMMARY|[Ee]rror|not supported).*)$", re.MULTILINE)


def check_all_kernels(check: Check) -> None:
    """Check the cases of every kernel source: what runs under the tools."""
    for source in KERNEL_SOURCES:
        check_kernels(check, source)


def sanitize(check: Check) -> None:
    """Run each tool over the small cases, a row for each tool."""
    binary = find_sanitizer()
    for tool in _TOOLS:
        with check.case(tool) as figures:
            figures["checked"] = _run(binary, tool, check.folder)


def find_sanitizer() -> str:
    """Return the path of compute-sanitizer.

    Raises:
        SkippedError: if it is nowhere.
    """
    homes = [os.environ.get("CUDA_HOME", ""), "/usr/local/cuda"]
    places = [Path(home) / folder for home in homes if home for folder in ("bin", _NAME)]
    path = os.pathsep.join([os.environ.get("PATH", ""), *map(str, places)])
    found = shutil.which(_NAME, path=path)
    if found is None:
        raise SkippedError(f"no {_NAME} in PATH, CUDA_HOME or /usr/local/cuda")
    return found


def _run(binary: str, tool: str, folder: Path) -> int:
    """Return how many cases a tool found nothing in."""
    rows = folder / f"sanitizer-{tool}.jsonl"
    command = [binary, "--tool", tool, "--error-exitcode", str(_FOUND), sys.executable, "-m"]
    command += ["plugins.bench.gpu_check.part_process", f"{__name__}:check_all_kernels"]
    try:
        done = subprocess.run(
            [*command, str(rows), str(folder), "small"],
            capture_output=True,
            text=True,
            check=False,
            timeout=_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise SkippedError(f"not done after {_SECONDS} s") from error
    said = "; ".join(dict.fromkeys(_SUMMARY.findall(done.stdout + done.stderr)))
    found = read_rows(rows)
    if "not supported" in said:
        raise SkippedError(said)
    wrong = [row["case"] for row in found if row["result"] == FAILED]
    if done.returncode or wrong:
        raise AssertionError(f"exit status {done.returncode}: {said}; wrong: {wrong}")
    return sum(row["result"] == OK for row in found)
