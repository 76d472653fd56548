"""`make gpu-check` as far as it goes without a GPU, and over the stand-in driver to its end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("cuda.bindings.driver")

from plugins.bench.gpu_check import c_library
from plugins.bench.gpu_check.__main__ import run_parts
from plugins.bench.gpu_check.cases import cases_of
from plugins.bench.gpu_check.part_process import run_part
from plugins.bench.gpu_check.parts import KERNEL_SOURCES, PARTS, Part
from plugins.bench.gpu_check.report import markdown
from plugins.bench.gpu_check.rows import Check, SkippedError
from tests.plugins.conftest import built_once, emulated_path
from tests.plugins.emulated_build import build_starter
from tests.plugins.library import Library
from tests.stand_in.conftest import driver_path
from trtllm_dflash.graph.ops import OPS

__all__ = ["driver_path", "emulated_path"]  # fixtures
ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "plugins.bench.gpu_check"]
BROKEN = "dflash_select_walk"  # does nothing in the run over the stand-in driver
_SITE = """\
import sys

from tests.stand_in.driver import Driver, Setup

Driver({driver!r}, {starter!r}).reset(Setup(skip={broken!r}))
absent = ["tensorrt_rtx"]
if any(argument.endswith((":check_kernels", ":compile_all")) for argument in sys.orig_argv):
    absent += ["click", "transformers", "onnxruntime", "rich", "tokenizers", "jinja2"]
    absent += ["huggingface_hub", "pytest", "torch"]
sys.modules.update(dict.fromkeys(absent))  # as if they were not installed
"""


SKIPPED = {
    "engine-native": "the Python module tensorrt_rtx cannot be imported",
    "engine-sm80": "the Python module tensorrt_rtx cannot be imported",
    "engine-stand-in": "the plugin class needs TensorRT-RTX's module",
    "sanitizer": "no compute-sanitizer in PATH, CUDA_HOME or /usr/local/cuda",
    "c-library": "the C library needs nvcc",
}


def succeed(check: Check, word: str = "") -> None:
    check.add("a case", "ok", word=word)


def crash(check: Check) -> None:
    check.add("before", "ok")
    os.abort()


def hang(check: Check) -> None:
    check.add("before", "ok")
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (check.folder / "child").write_text(str(child.pid))
    child.wait()


def fail(check: Check) -> None:
    with check.case("wrong"):
        raise ValueError("3 is\nnot 4")
    with check.case("absent"):
        raise SkippedError("no such thing here")
    with check.case("right") as figures:
        figures["microseconds"] = 1.5


def lack(check: Check) -> None:
    import no_such_module_at_all  # noqa: F401


def refuse(check: Check) -> None:
    raise SkippedError("this GPU has none")


def _part(function: Any, *arguments: str) -> Part:
    name = function.__name__
    return Part(name, f"{__name__}:{name}", 300, arguments)


def test_a_part_that_succeeds(tmp_path: Path) -> None:
    found = run_part(_part(succeed, "hello"), tmp_path, small=True, limit=300)
    assert (found["result"], found["reason"]) == ("ok", "")
    assert found["rows"] == [{"case": "a case", "result": "ok", "reason": "", "word": "hello"}]


def test_a_part_that_crashes_keeps_its_rows(tmp_path: Path) -> None:
    found = run_part(_part(crash), tmp_path, small=True, limit=300)
    assert found["result"] == "failed"
    assert found["reason"].startswith("ended by SIGABRT")
    assert [row["case"] for row in found["rows"]] == ["before"]


@pytest.mark.slow
def test_a_part_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    found = run_part(_part(hang), tmp_path, small=True, limit=20)
    assert (found["result"], found["reason"]) == ("failed", "ended after its limit of 20 s")
    assert [row["case"] for row in found["rows"]] == ["before"]
    child = Path("/proc") / (tmp_path / "child").read_text()
    end = time.monotonic() + 20
    while child.exists() and "Z (zombie)" not in (child / "status").read_text():
        assert time.monotonic() < end, "its child lives on"
        time.sleep(0.1)


def test_a_case_that_fails_is_one_row(tmp_path: Path) -> None:
    found = run_part(_part(fail), tmp_path, small=True, limit=300)
    assert (found["result"], found["reason"]) == ("failed", "1 of 3 cases failed")
    assert found["rows"] == [
        {"case": "wrong", "result": "failed", "reason": "ValueError: 3 is not 4"},
        {"case": "absent", "result": "skipped", "reason": "no such thing here"},
        {"case": "right", "result": "ok", "reason": "", "microseconds": 1.5},
    ]


@pytest.mark.parametrize(
    ("function", "words"),
    [(lack, "No module named 'no_such_module_at_all'"), (refuse, "this GPU has none")],
)
def test_a_part_that_cannot_be_tried(tmp_path: Path, function: Any, words: str) -> None:
    found = run_part(_part(function), tmp_path, small=True, limit=300)
    assert found["result"] == "skipped"
    assert words in found["reason"]


def test_every_kernel_source_is_checked() -> None:
    assert {spec.kernel.source for spec in OPS.values()} == set(KERNEL_SOURCES)


def test_parts_beyond_the_time_are_skipped(tmp_path: Path) -> None:
    found = run_parts([_part(succeed)], tmp_path, small=True, seconds=3)
    assert found[0]["result"] == "skipped"
    assert found[0]["reason"] == "the 3 s for all parts are used"


def test_without_a_gpu_it_says_what_to_do() -> None:
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}  # where there is a GPU
    done = subprocess.run(
        COMMAND, capture_output=True, text=True, check=False, env=hidden, cwd=ROOT
    )
    assert done.returncode == 1
    assert done.stderr.startswith("gpu-check needs an NVIDIA GPU. Looked for: the driver lib")
    assert "Run it on a machine where nvidia-smi lists a GPU." in done.stderr
    assert "Traceback" not in done.stderr


def _cells(line: str) -> int:
    return line.replace("\\|", "").count("|")


def test_the_table_has_a_line_for_each_row() -> None:
    rows = [
        {"case": "a|b", "result": "ok", "reason": "", "microseconds": 4.0, "other": "SDPA"},
        {"case": "c", "result": "skipped", "reason": "why"},
    ]
    rows[0] |= {"other_microseconds": 10.0, "bandwidth_percent": 81.26, "rows": 16}
    parts = [{"name": "speed", "result": "ok", "reason": "", "seconds": 3.0, "rows": rows}]
    head = dict.fromkeys(("gpu", "arch", "driver", "driver_cuda", "date", "commit"), "x")
    head["is_changed"] = ""
    text = markdown({**head, "command": "y", "versions": {}, "seconds": 9.0, "parts": parts})
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({_cells(line) for line in table}) == 1
    assert table[3] == "|  | a\\|b | ok | 4 | 81.26 |  | SDPA | 10 | 2.50 | rows 16 |"
    assert table[4].endswith("| why |")


@pytest.mark.slow
@pytest.mark.parametrize("source", KERNEL_SOURCES)
def test_calls_of_the_c_library(emulated: Library, source: str) -> None:
    for case in cases_of(source, small=True):
        given = case.inputs()
        case.verify(given, c_library.call(emulated, case, given))


@pytest.fixture
def on_stand_in(
    driver_path: Path,
    emulated_path: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, str]:
    """Return an environment in which every Python process has the stand-in driver."""
    starter = built_once(
        tmp_path_factory, "starter", lambda folder: build_starter(folder, emulated_path)
    )
    text = _SITE.format(driver=str(driver_path), starter=str(starter), broken=BROKEN)
    (tmp_path / "sitecustomize.py").write_text(text)
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    # Without nvcc, CMake and compute-sanitizer, whatever this machine has.
    return {**os.environ, "PYTHONPATH": paths, "PATH": "/usr/bin:/bin", "CUDA_HOME": ""}


@pytest.mark.slow
def test_it_runs_to_its_end(on_stand_in: dict[str, str], tmp_path: Path) -> None:
    """Over the stand-in driver, where one kernel does nothing: that part fails alone.

    Of the parts that need torch's CUDA there is one: each imports torch only to say that it has
    none.
    """
    chosen = [part.name for part in PARTS if not part.name.startswith("speed-")]
    chosen.append("speed-select")
    options = ["--small", "--seconds", "6000", "--output-dir", str(tmp_path / "out")]
    options += ["--parts", *chosen]
    done = subprocess.run(
        [*COMMAND, *options],
        capture_output=True,
        text=True,
        check=False,
        env=on_stand_in,
        cwd=ROOT,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    report = json.loads((tmp_path / "out" / "stand_in_0.json").read_text())
    assert report["gpu"] == "Stand-in 0"
    assert report["arch"] == "sm120"
    assert {"numpy", "cuda-bindings"} <= report["versions"].keys()
    assert len(report["commit"]) == 40
    assert "--small" in report["command"]
    parts = {part["name"]: part for part in report["parts"]}
    assert sorted(parts) == sorted(chosen)
    failed = [name for name, part in parts.items() if part["result"] == "failed"]
    assert failed == ["correct-select"], done.stdout
    assert "Arrays are not equal" in parts["correct-select"]["rows"][0]["reason"]
    for name in ("compile", "correct-attention", "correct-accept", "correct-moe"):
        assert parts[name]["result"] == "ok"
        assert parts[name]["rows"]
    reasons = {
        name: part["reason"] for name, part in parts.items() if part["result"] == "skipped"
    }
    assert reasons.keys() == parts.keys() - {
        "compile",
        *(f"correct-{s}" for s in KERNEL_SOURCES),
    }
    for name, reason in reasons.items():
        words = "sees no GPU" if name.startswith("speed-") else SKIPPED[name]
        assert words in reason, name
    table = (tmp_path / "out" / "stand_in_0.md").read_text().splitlines()
    lines = [line for line in table if line.startswith("|")]
    assert len(lines) == 2 + sum(1 + len(part["rows"]) for part in parts.values())
    assert len({_cells(line) for line in lines}) == 1
