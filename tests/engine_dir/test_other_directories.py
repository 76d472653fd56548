"""What is said of a directory that was taken for an engine's."""

from __future__ import annotations

from pathlib import Path

import pytest

from trtllm_dflash.engine_dir import manifest
from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.engine_dir.other_directories import describe_other
from trtllm_dflash.errors import EngineError


def test_missing_directory_is_called_missing(tmp_path: Path) -> None:
    for load in (EngineConfig.load, manifest.load):
        with pytest.raises(
            EngineError, match=r"nothing: there is no such directory\. Give the"
        ):
            load(tmp_path / "nothing")


def test_checkpoint_is_to_be_built(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["X"]}', encoding="utf-8")
    words = rf"is a model's checkpoint, and no engine. Build one: .* --target {tmp_path}$"
    for load in (EngineConfig.load, manifest.load):
        with pytest.raises(EngineError, match=words):
            load(tmp_path)


def test_folder_of_engines_names_them(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").touch()
    words = f"The engines in it are {tmp_path}/a, {tmp_path}/b. Give one of them."
    assert describe_other(tmp_path, "config.json").endswith(words)


def test_damaged_config_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(EngineError, match=r"not (valid )?JSON"):
        EngineConfig.load(tmp_path)
