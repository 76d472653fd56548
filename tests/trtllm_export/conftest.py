"""An export for TensorRT-LLM, and what is in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from trtllm_dflash.cli import main
from trtllm_dflash.options.trtllm_export import TrtllmExportConfig
from trtllm_dflash.trtllm_export.export import export


@pytest.fixture
def exported(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """`exported(**options)`: gpt-oss-120b for 8 GPUs or as asked; `yaml`: the configuration, `dir`:
    where it is.
    """

    def make(**options: Any) -> dict[str, Any]:
        asked = {
            "target": "gpt-oss-120b",
            "output_dir": tmp_path / "export",
            "gpus": 8,
        } | options
        export(TrtllmExportConfig(**asked))
        directory = asked["output_dir"]
        return {
            "dir": directory,
            "yaml": yaml.safe_load((directory / "trtllm.yaml").read_text()),
        }

    return make


def command(directory: Path, *options: str) -> Result:
    """Run `dflash-trt export-trtllm` into a directory."""
    arguments = ["export-trtllm", "--output-dir", str(directory), *options]
    return CliRunner().invoke(main, arguments)


def page_of(made: dict[str, Any]) -> str:
    """Return an export's README."""
    text: str = (made["dir"] / "README.md").read_text()
    return text
