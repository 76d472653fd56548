"""No command writes outside of the paths that it was given, or looks up a host by itself."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REQUIRE_ALL
from tests.fixtures.builds import cpu_engine, logs, pair

__all__ = ["cpu_engine", "logs", "pair"]
RUN = "run e hello --max-tokens 3"
PROFILE = "profile e --max-tokens 2 --prompts prompts --batch 1 --html made/page.html"
STRACE = shutil.which("strace")
WRITES = re.compile(r'(?:open|creat|mkdir|rename)[a-z0-9]*\((?:AT_FDCWD, )?"([^"]*)"(.*)')


@pytest.fixture(scope="module")
def place(
    pair: dict[str, str], cpu_engine: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Make a folder with a pair and an engine, the working directory of all commands."""
    folder = tmp_path_factory.mktemp("place")
    for name, source in (("t", pair["target"]), ("d", pair["drafter"]), ("e", cpu_engine)):
        shutil.copytree(source, folder / name)
    (folder / "prompts").write_text("hello")
    return folder


@pytest.mark.slow
@pytest.mark.skipif(STRACE is None and not REQUIRE_ALL, reason="strace is not installed")
@pytest.mark.sample(5)
@pytest.mark.parametrize(
    ("home", "command", "needs"),
    [
        ("empty", "build --target t --drafter d --output-dir made/cpu", "onnxruntime"),
        (
            "empty",
            "build --target t --no-drafter --arch sm120 --no-plugins --output-dir made/gpu",
            "tensorrt_rtx",
        ),
        ("empty", RUN, "onnxruntime"),
        ("missing", RUN, "onnxruntime"),
        ("empty", "eval e --text-tokens 40 --json made/eval.json", "onnxruntime"),
        ("empty", PROFILE, "matplotlib"),
        ("missing", PROFILE, "matplotlib"),
        ("empty", "export-triton e --output-dir made/models", "onnxruntime"),
        ("empty", "quantize --target t --quant fp8 --output-dir made/fp8", "modelopt"),
        ("empty", "doctor", "onnxruntime"),
    ],
)
def test_commands_leave_nothing_and_call_nobody(
    home: str, command: str, needs: str, place: Path, tmp_path: Path
) -> None:
    pytest.importorskip(needs)
    (place / "made").mkdir()
    (tmp_path / "tmp").mkdir()
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "TMPDIR": str(tmp_path / "tmp"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "DFLASH_NUM_THREADS": "1",
    }
    environment["HOME"] = str(tmp_path / "home")
    if home == "empty":
        (tmp_path / "home").mkdir()
    trace = tmp_path / "trace"
    calls = "open,openat,creat,mkdir,mkdirat,rename,renameat,renameat2,connect"
    traced = (
        str(STRACE),
        "--seccomp-bpf",
        "-f",
        "-qq",
        "-e",
        f"trace={calls}",
        "-o",
        str(trace),
    )
    done = subprocess.run(
        [*traced, sys.executable, "-m", "trtllm_dflash", *command.split()],
        cwd=place,
        env=environment,
        capture_output=True,
        encoding="utf-8",
    )
    shutil.rmtree(place / "made")
    assert done.returncode == 0, done.stderr
    assert not [line for line in done.stderr.splitlines() if "elemetry" in line]
    assert list((tmp_path / "tmp").iterdir()) == []
    assert not (tmp_path / "home").exists() or list((tmp_path / "home").iterdir()) == []
    assert _strangers(trace.read_text(errors="replace"), place, tmp_path / "tmp") == []


def _strangers(trace: str, *allowed: Path) -> list[str]:
    """Return the lines of a trace that write elsewhere, or connect to more than this machine."""
    found = []
    for line in trace.splitlines():
        if "connect(" in line and "sa_family=AF_INET" in line:
            found.append(line)
        match = WRITES.search(line)
        if match is None or " = -1 " in line:
            continue
        path, rest = match.groups()
        is_write = "open" not in line or "O_WRONLY" in rest or "O_RDWR" in rest
        is_known = not path.startswith("/") or path.startswith(("/dev/", "/proc/"))
        if is_write and not is_known and not any(Path(path).is_relative_to(p) for p in allowed):
            found.append(line)
    return found
