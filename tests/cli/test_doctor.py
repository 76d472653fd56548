"""dflash-trt doctor."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from trtllm_dflash.cli import main
from trtllm_dflash.hardware.archs import ARCHS


def test_doctor_says_what_can_be_built_and_run() -> None:
    pytest.importorskip("onnxruntime")
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 0, result.output
    assert "  cpu    build yes  run yes  any CPU\n" in result.stdout
    assert "  sm103  build no   run no   B300, GB300\n" in result.stdout
    assert "why not\n" in result.stdout


def test_doctor_prints_json() -> None:
    result = CliRunner().invoke(main, ["doctor", "--json"])
    assert [report["arch"] for report in json.loads(result.stdout)["archs"]] == list(ARCHS)
