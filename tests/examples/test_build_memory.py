"""What a build takes of memory beside mapped files, at a published model's width."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.examples.scripts import ROOT

LIMIT = 1.5  # bytes of own memory for each byte of weights


@pytest.mark.slow
def test_own_memory_grows_with_the_weights(tmp_path: Path) -> None:
    """Two layers of Qwen3-4B more take their own bytes, and little beyond.

    Without the join of gate and up it would be over the limit. The builds have a process of their
    own: what earlier tests have left in this one is not theirs.
    """
    pytest.importorskip("tensorrt_rtx")
    script = ROOT / "examples" / "benchmark" / "layer_cost.py"
    figures = tmp_path / "figures.json"
    command = [sys.executable, str(script), "--pair", "Qwen3-4B", "--layers", "2,4"]
    command += ["--archs", "sm120", "--formats", "bf16", "--vocab-size", "2048"]
    command += ["--work-dir", str(tmp_path), "--json", str(figures)]
    subprocess.run(command, check=True, timeout=600)
    two, four = json.loads(figures.read_text(encoding="utf-8"))["builds"]
    grown = four["own_memory"] - two["own_memory"]
    weights = four["checkpoint_bytes"] - two["checkpoint_bytes"]
    assert weights > 400_000_000
    assert 0.9 < grown / weights < LIMIT - 0.15
    assert four["own_memory"] < LIMIT * four["checkpoint_bytes"]
