"""Whatever kills the builder process, the caller gets a sentence with the status, the log's path
and its last lines.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trtllm_dflash.builder import worker_process
from trtllm_dflash.builder.job import BuildRequest
from trtllm_dflash.errors import BuildError, CheckpointError
from trtllm_dflash.options.build import BuildConfig

Serve = Callable[..., dict[str, Any]]


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Serve:
    """`serve(script)` runs a Python script in the worker's place; its log is tmp_path/log."""

    def run(
        script: str, progress: Callable[[str, int, int], None] = lambda *_: None
    ) -> dict[str, Any]:
        monkeypatch.setattr(worker_process, "WORKER", (sys.executable, "-c", script))
        request = BuildRequest(
            BuildConfig("the target", tmp_path / "engine"), tmp_path / "staging"
        )
        return worker_process.run_worker(request, log=tmp_path / "log", progress=progress)

    return run


def test_a_request_survives_the_journey(tmp_path: Path) -> None:
    config = BuildConfig(
        "t", tmp_path / "engine", drafter="d", arch="sm120", max_seq_len=100, draft_len=3
    )
    request = BuildRequest(config, tmp_path / "staging")
    assert BuildRequest.from_json(request.to_json()) == request


def test_the_worker_gets_the_request_and_its_result_comes_back(serve: Serve) -> None:
    script = """
import json, sys
request = json.loads(sys.stdin.readline())
print(json.dumps({"result": {"target": request["config"]["target"]}}))
"""
    assert serve(script) == {"target": "the target"}


def test_progress_is_passed_on(serve: Serve) -> None:
    seen: list[tuple[str, int, int]] = []
    script = """print('{"phase": "p", "done": 1, "total": 2}'); print('{"result": {}}')"""
    serve(script, lambda *event: seen.append(event))
    assert seen == [("p", 1, 2)]


def test_an_understood_error_keeps_its_class_and_names_the_log(
    serve: Serve, tmp_path: Path
) -> None:
    report = json.dumps({"error": "CheckpointError", "text": "bad weight"})
    script = f"import sys; print({report!r}); sys.exit(1)"
    with pytest.raises(
        CheckpointError, match=rf"bad weight\nThe builder's log is {tmp_path / 'log'}"
    ):
        serve(script)


@pytest.mark.parametrize(
    ("death", "words"),
    [
        ("sys.exit(3)", r"ended with exit status 3 and no engine"),
        ("pass", r"ended with exit status 0 and no engine"),
        (
            "raise ValueError('surprise')",
            r"(?s)ended with exit status 1 and no engine.*ValueError: surprise",
        ),
        (
            "os.kill(os.getpid(), 9)",
            r"killed by signal 9 \(SIGKILL\); the kernel does this when memory runs out",
        ),
        ("os.abort()", r"killed by signal 6 \(SIGABRT\); a native library gave up"),
        (
            "os.kill(os.getpid(), 11)",
            r"killed by signal 11 \(SIGSEGV\); a native library crashed",
        ),
        (
            "os.kill(os.getpid(), 7)",
            r"killed by signal 7 \(SIGBUS\); usually a weight file that was cut short",
        ),
        ("os.kill(os.getpid(), 15)", r"killed by signal 15 \(SIGTERM\)\."),
        ("os.kill(os.getpid(), 40)", r"killed by signal 40\."),
    ],
)
def test_a_death_is_an_error_with_the_log_and_its_last_lines(
    serve: Serve, tmp_path: Path, death: str, words: str
) -> None:
    script = (
        "import os, sys; [print('line', n, file=sys.stderr) for n in range(20)];"
        f" sys.stderr.flush(); {death}"
    )
    with pytest.raises(BuildError, match=words) as caught:
        serve(script)
    text = str(caught.value)
    assert f"Its log is {tmp_path / 'log'}, and ends:\n" in text
    assert "  line 19" in text
    assert "  line 1\n" not in text
    assert (tmp_path / "log").read_text().startswith("line 0\n")


def test_a_worker_that_dies_after_its_result_has_failed(serve: Serve) -> None:
    with pytest.raises(BuildError, match="exit status 5"):
        serve("""import sys; print('{"result": {}}'); sys.exit(5)""")


def test_an_interrupt_kills_the_worker(serve: Serve, tmp_path: Path) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    script = f"""
import os, time
open({str(tmp_path / "pid")!r}, "w").write(str(os.getpid()))
print('{{"phase": "p", "done": 1, "total": 2}}', flush=True)
time.sleep(600)
"""
    with pytest.raises(KeyboardInterrupt):
        serve(script, interrupt)
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text()}").exists()


def test_prints_of_native_code_go_to_the_log() -> None:
    script = """
import os
from trtllm_dflash.builder.progress_protocol import EventStream
events = EventStream.over_stdout()
os.write(1, b"noise of a native library")
for done in range(1000):
    events.progress("p", done, 1000)
events.result({"a": 1})
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stderr == "noise of a native library"
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == 101  # one for each percent, and the result
    assert lines[-1] == {"result": {"a": 1}}


def test_the_plugin_library_resolves_in_the_worker_and_not_here() -> None:
    pytest.importorskip("tensorrt_rtx_libs")
    with pytest.raises(OSError, match=r"libtensorrt_rtx\.so"):
        ctypes.CDLL("libtensorrt_rtx.so")
    script = "import ctypes; ctypes.CDLL('libtensorrt_rtx.so')"
    with worker_process.worker_environment() as environment:
        subprocess.run([sys.executable, "-c", script], env=environment, check=True)
        folder = Path(environment["LD_LIBRARY_PATH"].split(":")[0])
        assert folder.is_dir()
    assert not folder.exists()


def test_the_worker_imports_nothing_from_the_users_folder(tmp_path: Path) -> None:
    (tmp_path / "onnx_ir.py").write_text("raise SystemExit('imported from the current folder')")
    command = [
        sys.executable,
        "-c",
        "import onnx_ir, trtllm_dflash.builder.worker; print(onnx_ir.__file__)",
    ]
    with worker_process.worker_environment() as environment:
        done = subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
        )
    assert str(tmp_path) not in done.stdout


def test_a_known_library_path_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx_libs")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/lib")
    with worker_process.worker_environment() as environment:
        assert environment["LD_LIBRARY_PATH"].endswith(":/opt/lib")
