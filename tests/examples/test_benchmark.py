"""The benchmark commands work, on a sample: the figures in their README come from the whole run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.demo


def _run(script: str, *arguments: str) -> str:
    command = [sys.executable, str(ROOT / "examples" / script), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_speed(tmp_path: Path) -> None:
    """Both sides and the reference on two prompts; every text equal."""
    pytest.importorskip("dflash")
    options = ("--limit", "1", "--max-tokens", "8", "--draft-lens", "3", "--json", str(tmp_path / "speed.json"))
    assert "reference" in _run("benchmark/speed.py", *options)
    totals = json.loads((tmp_path / "speed.json").read_text())["totals"]
    assert {"heldout", "unseen"} <= totals.keys()
    for sides in totals.values():
        assert {side: total["same_text"] for side, total in sides.items()} == dict.fromkeys(
            ("plain", "draft 3", "reference"), sides["plain"]["prompts"]
        )


def test_build_cost(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    _run("benchmark/build_cost.py", "--layers", "2", "--json", str(tmp_path / "cost.json"))
    (row,) = json.loads((tmp_path / "cost.json").read_text())["builds"]
    assert row["layers"] == 2
    assert row["seconds"] > 0


def test_compare() -> None:
    """What `make demo` shows at its end."""
    out = _run("demo_pair/compare.py", "demo/plain", "demo/cpu", "Name three fruits.", "--max-tokens", "16")
    assert "the same text" in out
