"""dflash-trt inspect."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from trtllm_dflash.builder.build_engine import build_engine
from trtllm_dflash.cli import main
from trtllm_dflash.options.build import BuildConfig


@pytest.fixture
def engine(make_target: Callable[..., Path], tmp_path: Path) -> Path:
    pytest.importorskip("onnxruntime")
    return build_engine(
        BuildConfig(str(make_target("llama")), tmp_path / "engine", max_seq_len=32)
    ).directory


def test_inspect_shows_an_engine_and_finds_changes(engine: Path) -> None:
    result = CliRunner().invoke(main, ["inspect", str(engine)])
    assert result.exit_code == 0, result.output
    assert "check\n  every file is what the build wrote\n" in result.stdout
    assert "  drafter      none: a plain engine, one token a step\n" in result.stdout
    data = json.loads(CliRunner().invoke(main, ["inspect", str(engine), "--json"]).stdout)
    assert data["config"]["build_config"]["max_seq_len"] == 32

    (engine / "model.onnx").write_bytes(b"")
    result = CliRunner().invoke(main, ["inspect", str(engine)])
    assert result.exit_code == 1
    assert "check\n  model.onnx has 0 bytes; the build wrote " in result.stdout


def test_inspect_refuses_another_directory(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["inspect", str(tmp_path)])
    assert result.exit_code == 1
    assert "no manifest.json, so this is not an engine directory" in result.stderr
