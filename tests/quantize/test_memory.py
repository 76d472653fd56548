"""Quantizing a real model takes the memory of one layer and the libraries."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import DEMO

pytestmark = pytest.mark.slow

pytest.importorskip("modelopt")


@pytest.mark.demo
def test_quantize_takes_less_than_three_times_the_model(tmp_path: Path) -> None:
    target = DEMO / "target"
    size = (target / "model.safetensors").stat().st_size
    command = [
        sys.executable,
        "-m",
        "trtllm_dflash",
        "quantize",
        "--target",
        str(target),
        "--quant",
        "fp8",
    ]
    command += [
        "--kv-cache-dtype",
        "fp8",
        "--calib-size",
        "8",
        "--output-dir",
        str(tmp_path / "q"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = re.search(r"peak memory ([\d.]+) MB", done.stderr)
    assert found
    assert float(found[1]) * 1e6 < 3 * size
    agreed = re.search(r"same next token ([\d.]+)%", done.stderr)
    assert agreed
    assert (
        float(agreed[1]) > 80
    )  # FP8 on a real model; a wrong scale anywhere gives a few per cent
