"""examples/triton/serve.py: however it ends, its server ends with it, and the next one can
start.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import REQUIRE_ALL
from tests.patience import PATIENCE
from tests.triton_server.conftest import local_server
from trtllm_dflash.options.triton_export import TritonExportConfig
from trtllm_dflash.triton_server.export import export

SCRIPT = local_server.ROOT / "examples" / "triton" / "serve.py"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (REQUIRE_ALL or local_server.packaged_servers()),
        reason="no Triton server: run `make test-all`",
    ),
]
Serve = Callable[[tuple[int, ...]], "subprocess.Popen[str]"]


@pytest.fixture
def serve(
    tiny_engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Serve]:
    """`serve(ports)`: the script with a repository of one model."""
    monkeypatch.setenv("DFLASH_NUM_THREADS", "1")
    export(TritonExportConfig(tiny_engine, tmp_path / "models", cpu=True))
    started: list[subprocess.Popen[str]] = []

    def start(ports: tuple[int, ...]) -> subprocess.Popen[str]:
        command = [
            sys.executable,
            str(SCRIPT),
            str(tmp_path / "models"),
            "--ports",
            *map(str, ports),
        ]
        started.append(
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
        return started[-1]

    yield start
    for process in started:
        for pid in (process.pid, *processes_of(process)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def processes_of(serving: subprocess.Popen[str]) -> dict[int, str]:
    """Find the processes of the server and its models by the name of their shared memory."""
    prefix = f"dflash_{serving.pid}_".encode()
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has just ended
            if prefix in path.read_bytes():
                found[int(path.parent.name)] = (path.parent / "comm").read_text().strip()
    return found


def shared_memory_of(serving: subprocess.Popen[str]) -> list[Path]:
    return list(Path("/dev/shm").glob(f"dflash_{serving.pid}_*"))


def wait_until_it_serves(serving: subprocess.Popen[str]) -> None:
    assert serving.stdout is not None
    assert serving.stdout.readline().startswith("serving ")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signal_stops_the_script_and_its_server(serve: Serve, number: signal.Signals) -> None:
    ports = local_server.free_ports()
    serving = serve(ports)
    wait_until_it_serves(serving)
    assert sorted(processes_of(serving).values()) == ["triton_python_b", "tritonserver"]
    second = serve(ports)
    assert second.wait(PATIENCE) == 1
    assert second.stderr is not None
    assert (
        f"port {ports[0]}: Address already in use. Stop what serves there"
        in second.stderr.read()
    )
    serving.send_signal(number)
    assert serving.wait(PATIENCE) == 0
    assert (processes_of(serving), shared_memory_of(serving)) == ({}, [])


def test_server_that_ends_by_itself_is_an_error(serve: Serve) -> None:
    serving = serve(local_server.free_ports())
    wait_until_it_serves(serving)
    (server,) = [pid for pid, name in processes_of(serving).items() if name == "tritonserver"]
    os.kill(server, signal.SIGKILL)
    assert serving.wait(PATIENCE) == 1
    assert serving.stderr is not None
    assert "tritonserver ended by itself with -9: see " in serving.stderr.read()
    assert shared_memory_of(serving) == []
    assert "triton_python_b" not in processes_of(serving).values()
