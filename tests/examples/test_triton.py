"""From an engine to a stream: every command of the example's page, in order, and its benchmark on a
sample.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REQUIRE_ALL
from tests.patience import PATIENCE
from tests.triton_server.conftest import local_server

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "examples" / "triton" / "README.md").read_text()

pytestmark = [
    pytest.mark.slow,
    pytest.mark.demo,
    pytest.mark.skipif(
        not (REQUIRE_ALL or local_server.packaged_servers()),
        reason="no Triton server: run `make test-all`",
    ),
]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Make a folder that looks like the checkout; what the commands write stays in it."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "cpu").symlink_to(ROOT / "demo" / "cpu")
    return tmp_path


@pytest.fixture
def in_background() -> Iterator[list[subprocess.Popen[str]]]:
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE)


def test_triton_page_commands_work(
    place: Path, in_background: list[subprocess.Popen[str]]
) -> None:
    """With ports of the test's own instead of 8000 to 8002."""
    ports = dict(
        zip(("8000", "8001", "8002"), map(str, local_server.free_ports()), strict=True)
    )
    lines = "".join(
        re.findall(r"^```bash\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    ).splitlines()
    assert lines[0].startswith("make .venv-triton/.ready"), "what `make test` has done"
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    }
    shown: list[str] = []
    for line in lines[1:]:
        command = shlex.split(
            re.sub(r"\b800[012]\b", lambda found: ports[found[0]], line.removesuffix(" &"))
        )
        options: dict[str, Any] = {
            "cwd": place,
            "env": environment,
            "text": True,
            "stdout": subprocess.PIPE,
        }
        if line.endswith("&"):
            in_background.append(subprocess.Popen(command, **options))
            assert in_background[0].stdout is not None
            advice = [in_background[0].stdout.readline() for _ in range(3)][2]
            continue
        done = subprocess.run(command, timeout=PATIENCE, check=True, **options)
        shown.append(done.stdout)
    whole, stream, metrics = shown[-3:]
    text = json.loads(whole)["text_output"]
    pieces = [
        json.loads(row)["text_output"]
        for row in re.findall(r"^data: (.*)$", stream, re.MULTILINE)
    ]
    assert len(pieces) > 1
    assert "".join(pieces) == text
    assert "dflash_requests_total{" in metrics
    advised = subprocess.run(
        shlex.split(advice), capture_output=True, text=True, check=True
    ).stdout
    assert advised.startswith('data: {"model_name":"dflash"'), (
        "the line that serve.py prints works"
    )


def test_triton_benchmark_writes_its_figures(tmp_path: Path) -> None:
    script = ROOT / "examples" / "triton" / "benchmark.py"
    sample = ["--rounds", "1", "--max-tokens", "4", "--long-words", "60", "--no-perf-analyzer"]
    command = [
        sys.executable,
        str(script),
        str(ROOT / "demo" / "cpu"),
        "--output",
        str(tmp_path),
        *sample,
    ]
    subprocess.run(command, check=True, timeout=PATIENCE)
    result = json.loads((tmp_path / "serving.json").read_text())
    assert result["slots"] == 4
    assert result["ratio"] > 0
    assert all(seconds > 0 for seconds in result["first_token_seconds"].values())


def test_makefile_has_the_benchmark_targets() -> None:
    names = subprocess.run(
        ["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert {"serve-demo", "triton-demo", "bench-serving"} <= set(
        re.findall(r"^([a-z-]+)", names, re.MULTILINE)
    )
