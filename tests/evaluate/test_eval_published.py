"""`dflash-trt eval` of a checkpoint in another maker's layout, against its original."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.evaluate.conftest import Evaluate
from tests.fixtures.published import SCHEMES, published_copy


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fine_grained", "fp8_channel", "nvfp4"])
def test_eval_names_the_format_and_measures_each_linear(
    name: str,
    run_eval: Evaluate,
    engine: Path,
    target: Path,
    build_cpu: Callable[..., Path],
    tmp_path: Path,
) -> None:
    quantized = published_copy(target, tmp_path / name, name, dtype="F32")
    report = tmp_path / "report.json"
    result = run_eval(build_cpu(quantized), "--against", engine, "--json", report)
    assert result.exit_code == 0, result.stderr
    data = json.loads(report.read_text())
    assert data["engine"]["weights"] == SCHEMES[name].expected.upper()
    errors = data["comparison"]["linear_errors"]
    assert len(errors) == 5 * 7 + 1
    # A linear of the first layer has its own error alone: that of 4 significant bits, or of E2M1.
    low, high = (0.1, 0.2) if name == "nvfp4" else (0.02, 0.03)
    assert low < errors["model.layers.0.self_attn.q_proj"] < high
