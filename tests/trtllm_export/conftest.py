"""An export for TensorRT-LLM, and what is in it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

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


class LocalPair(NamedTuple):
    """Directories of a tiny target and its drafter, which a test may change."""

    target: Path
    drafter: Path

    @property
    def options(self) -> dict[str, Any]:
        """Return the options that export it for one GPU."""
        return {"target": str(self.target), "drafter": str(self.drafter), "gpus": 1}


@pytest.fixture
def local_pair(
    make_target: Callable[..., Path], make_drafter: Callable[..., Path], tmp_path: Path
) -> LocalPair:
    """Copies of a tiny pair."""
    target = make_target("llama")
    return LocalPair(
        shutil.copytree(target, tmp_path / "target"),
        shutil.copytree(make_drafter(target), tmp_path / "drafter"),
    )


def command(directory: Path, *options: str) -> Result:
    """Run `dflash-trt export-trtllm` into a directory."""
    arguments = ["export-trtllm", "--output-dir", str(directory), *options]
    return CliRunner().invoke(main, arguments)


def page_of(made: dict[str, Any]) -> str:
    """Return an export's README."""
    text: str = (made["dir"] / "README.md").read_text()
    return text
