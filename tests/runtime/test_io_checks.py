"""The table in config.json is compared with what the engine itself states."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.engine_dir.io_tensors import IoTensor
from trtllm_dflash.errors import EngineError
from trtllm_dflash.runtime.engine import Engine
from trtllm_dflash.runtime.sessions.io_checks import PresentTensor, check_present
from trtllm_dflash.runtime.sessions.ort import OrtSession

ROW = IoTensor("cache.out", "output", "float32", ("batch", 2, 8), "", aliases="cache")
SAME = PresentTensor("output", "float32", ("batch", 2, 8), "cache")


@pytest.mark.parametrize(
    "present",
    [SAME, replace(SAME, aliases=None), replace(SAME, shape=(None, 2, None))],
)
def test_what_agrees_or_is_unknown(present: PresentTensor) -> None:
    check_present([ROW], {"cache.out": present}, where="engine")


@pytest.mark.parametrize(
    ("present", "words"),
    [
        (
            replace(SAME, dtype="int32"),
            "cache.out has the type int32, and config.json says float32",
        ),
        (replace(SAME, direction="input"), "has the direction input, and .* says output"),
        (
            replace(SAME, shape=("batch", 2, 9)),
            r"shape \['batch', 2, 9\], and config.json says \['batch', 2, 8\]",
        ),
        (replace(SAME, shape=("batch", 2)), "has the shape"),
        (replace(SAME, shape=(3, 2, 8)), "has the shape"),
        (replace(SAME, shape=("rows", 2, 8)), "has the shape"),
        (replace(SAME, aliases="other"), "has the alias other, and config.json says cache"),
    ],
)
def test_differences_name_the_tensor_and_both_values(
    present: PresentTensor, words: str
) -> None:
    with pytest.raises(EngineError, match=f"engine: .*{words}.*build the engine again"):
        check_present([ROW], {"cache.out": present}, where="engine")


def test_missing_and_unknown_names() -> None:
    with pytest.raises(EngineError, match=r"disagree on the inputs and outputs cache\.out, y"):
        check_present([ROW], {"y": SAME}, where="engine")


@pytest.fixture
def two_engines(build_tiny: Callable[..., Path], built_engine: Path, tmp_path: Path) -> Path:
    """Make a directory with the config.json of another engine than its graph's."""
    directory = Path(shutil.copytree(built_engine, tmp_path / "both"))
    shutil.copy(build_tiny(max_seq_len=96) / "config.json", directory)
    return directory


def test_config_of_another_engine_is_refused(two_engines: Path) -> None:
    with pytest.raises(
        EngineError, match=r"target_key.0 has the shape .*, and config\.json says"
    ):
        OrtSession(two_engines, EngineConfig.load(two_engines), num_threads=1)


def test_caches_that_no_machine_has(built_engine: Path) -> None:
    config = replace(EngineConfig.load(built_engine), max_batch_size=1 << 50)
    with pytest.raises(
        EngineError, match=r"this machine has no .* Build with a smaller --max-b"
    ):
        OrtSession(built_engine, config, num_threads=1)


@pytest.mark.parametrize("name", ["config.json", "model.onnx", "rank0.safetensors"])
def test_manifest_must_list_what_the_engine_needs(
    built_engine: Path, tmp_path: Path, name: str
) -> None:
    directory = Path(shutil.copytree(built_engine, tmp_path / "copy"))
    path = directory / "manifest.json"
    path.write_text(path.read_text().replace(f'"{name}":', '"notes.txt":'))
    os.link(directory / name, directory / "notes.txt")
    with pytest.raises(EngineError, match=rf"does not list {name}, which an engine of onnx"):
        Engine.load(directory)


def test_tokenizer_that_the_build_did_not_write(built_engine: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(built_engine, tmp_path / "copy"))
    (directory / "tokenizer.json").write_text("{}")
    with pytest.raises(EngineError, match=r"tokenizer\.json was added after the build"):
        Engine.load(directory)
