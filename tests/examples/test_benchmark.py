"""The benchmark commands work, on a sample: the figures in their README come from the whole run."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.patience import PATIENCE

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.demo]


def _run(script: str, *arguments: str) -> str:
    command = [sys.executable, str(ROOT / "examples" / script), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _module(script: str) -> Any:
    """Import a script as a module."""
    spec = importlib.util.spec_from_file_location(Path(script).stem, ROOT / "examples" / script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    folder = str((ROOT / "examples" / script).parent)
    sys.path.insert(0, folder)  # for its neighbours
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(folder)
    return module


def test_speed_compares_all_systems(tmp_path: Path) -> None:
    """Both sides and the reference on two prompts; every text equal."""
    pytest.importorskip("dflash")
    options = (
        "--limit",
        "1",
        "--max-tokens",
        "8",
        "--draft-lens",
        "3",
        "--json",
        str(tmp_path / "speed.json"),
    )
    assert "reference" in _run("benchmark/speed.py", *options)
    totals = json.loads((tmp_path / "speed.json").read_text())["totals"]
    assert {"heldout", "unseen"} <= totals.keys()
    for sides in totals.values():
        assert {side: total["same_text"] for side, total in sides.items()} == dict.fromkeys(
            ("plain", "draft 3", "reference"), sides["plain"]["prompts"]
        )


def test_linear_attention_is_measured(tmp_path: Path) -> None:
    options = (
        "--target",
        "Qwen3.5-4B",
        "--block-sizes",
        "16",
        "--widths",
        "1",
        "--repeats",
        "2",
    )
    _run("benchmark/linear_attention.py", *options, "--json", str(tmp_path / "cost.json"))
    (row,) = json.loads((tmp_path / "cost.json").read_text())["layers"]
    assert row["linears_ms"] > 0
    assert row["rest_ms"] > 0


def test_build_cost_is_measured(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    _run("benchmark/build_cost.py", "--layers", "2", "--json", str(tmp_path / "cost.json"))
    (row,) = json.loads((tmp_path / "cost.json").read_text())["builds"]
    assert row["layers"] == 2
    assert row["seconds"] > 0


def test_layer_costs_are_on_a_line() -> None:
    """Two layers more cost 6 units, so that one costs 3 and ten cost 34."""
    script = _module("benchmark/layer_cost.py")
    common = {"arch": "sm120", "format": "bf16", "kernels": True}
    costs = (dict.fromkeys(script.COSTS, 10 + 3 * (layers - 2)) for layers in (4, 2))
    rows = [common | cost | {"layers": n} for n, cost in zip((4, 2), costs, strict=True)]
    two, four, layer, whole = script.with_lines(rows, 10)
    assert (two["layers"], four["layers"]) == (2, 4)
    assert whole["layers"] == "10, by the line"
    for name in script.COSTS:
        assert (layer[name], whole[name]) == pytest.approx((3, 34))


def test_layer_cost_table_has_the_measured_figures() -> None:
    script = _module("benchmark/layer_cost.py")
    facts = json.loads((ROOT / "examples" / "benchmark" / "layer_cost.json").read_text())
    page = (ROOT / "examples" / "benchmark" / "README.md").read_text()
    table = page.split("<!-- layer cost -->\n")[1].split("<!-- /layer cost -->")[0]
    whole = script.all_layers(facts["provenance"]["pair"])
    assert table == script.markdown(facts["builds"], whole)


def test_quantization_table_has_the_measured_figures() -> None:
    script = _module("benchmark/quantization.py")
    facts = json.loads((ROOT / "examples" / "benchmark" / "quantization.json").read_text())
    page = (ROOT / "docs" / "quantization.md").read_text()
    assert page.split("<!-- quantization -->\n")[1].split("<!-- /quantization -->")[
        0
    ] == script.markdown(facts)
    for row in facts["rows"]:
        assert row.get("linears") is None or row["linears"] <= (
            0.501 if row["name"] == "FP8" else 0.30
        )
        assert row["perplexity"] > 1
        for memory in ("quantize_memory", "cpu_build_memory", "gpu_build_memory"):
            was_measured = (
                memory != "quantize_memory" or row is not facts["rows"][0]
            )  # which is not quantized
            assert (memory in row) == was_measured
            assert 0 < row.get(memory, 1) <= 3 * facts["checkpoint_bytes"]
    assert len({(row["name"], row["kv_cache"]) for row in facts["rows"]}) == 8


def test_quantization_memory_is_that_of_the_process() -> None:
    """Of a process and its children together, pages of files left out."""
    script = _module("benchmark/quantization.py")
    child = (
        "data = bytearray(1 << 27); data[::4096] = bytes(len(data[::4096])); import time;"
        " time.sleep(600)"
    )
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    process = subprocess.Popen([sys.executable, "-c", parent], start_new_session=True)
    try:
        deadline, found = time.monotonic() + PATIENCE, 0
        while found < 1 << 27 and time.monotonic() < deadline:
            found = sum(map(script.anonymous_bytes, script.family(process.pid)))
        assert 1 << 27 <= found < 1 << 28
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert script.anonymous_bytes(process.pid) == 0


def test_compare_shows_both_answers() -> None:
    """What `make demo` shows at its end."""
    out = _run(
        "demo_pair/compare.py",
        "demo/plain",
        "demo/cpu",
        "Name three fruits.",
        "--max-tokens",
        "16",
    )
    assert "the same text" in out
