"""Reading an engine's config.json."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.errors import EngineError


@pytest.fixture
def written(built_engine: Path, tmp_path: Path) -> Callable[..., Path]:
    """`written("section.key", value)`: a directory with the tiny engine's config.json, one value
    changed.
    """
    data = json.loads((built_engine / "config.json").read_text())

    def write(path: str, value: Any) -> Path:
        changed = copy.deepcopy(data)
        *sections, key = path.split(".")
        place = changed
        for section in sections:
            place = place[section]
        place[key] = value
        (tmp_path / "config.json").write_text(json.dumps(changed))
        return tmp_path

    return write


def test_what_the_build_wrote(built_engine: Path) -> None:
    config = EngineConfig.load(built_engine)
    assert (config.model_type, config.gpu_arch, config.backend, config.dtype) == (
        "qwen3",
        "cpu",
        "onnxruntime",
        "float32",
    )
    assert (config.vocab_size, config.eos_token_ids) == (97, (95,))
    assert (config.max_batch_size, config.max_seq_len, config.max_num_tokens) == (3, 192, 8)
    assert (config.block_size, config.draft_len, config.speculates) == (4, 3, True)
    assert config.cache_len >= 192 + 8
    assert {port.name for port in config.io} >= {
        "input_ids",
        "next_ids",
        "target_key.0",
        "draft_value.2.out",
    }


def test_an_earlier_engines_architecture_is_its_model_type(
    built_engine: Path, tmp_path: Path
) -> None:
    data = json.loads((built_engine / "config.json").read_text())
    pretrained = data["pretrained_config"]
    pretrained["architecture"] = pretrained.pop("model_type")
    (tmp_path / "config.json").write_text(json.dumps(data))
    assert EngineConfig.load(tmp_path).model_type == "qwen3"


@pytest.mark.parametrize(("written", "own", "number"), [("auto", "auto", 3), (2, 2, 2)])
def test_the_engines_own_number_of_drafts(
    built_engine: Path, tmp_path: Path, written: int | str, own: int | str, number: int
) -> None:
    data = json.loads((built_engine / "config.json").read_text())
    data["dflash"]["draft_len"] = written
    (tmp_path / "config.json").write_text(json.dumps(data))
    config = EngineConfig.load(tmp_path)
    assert (config.own_draft_len, config.draft_len) == (own, number)


def test_a_plain_engine(build_tiny: Callable[..., Path]) -> None:
    config = EngineConfig.load(build_tiny(draft=False))
    assert (config.block_size, config.draft_len, config.speculates) == (1, 0, False)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("dflash.draft_len", "many", 'dflash.draft_len is "many", expected an integer'),
        ("build_config.max_batch_size", None, "the key build_config.max_batch_size is missing"),
        ("generation_defaults", {"top_h": 1}, "generation_defaults has 'top_h', expected"),
        (
            "generation_defaults",
            {"temperature": "1"},
            "temperature is '1', expected 0 \\(greedy",
        ),
        (
            "build_config.max_seq_len",
            "9",
            'build_config.max_seq_len is "9", expected an integer',
        ),
        (
            "pretrained_config.vocab_size",
            0,
            "pretrained_config.vocab_size is 0, expected at least 1",
        ),
        ("dflash.block_size", 1, "dflash.block_size is 1, expected at least 2"),
        ("io", [], "io is list, expected the list of the step's inputs and outputs"),
        (
            "io",
            [{"name": "x"}],
            r"io\[0\]: expected an object with keys among aliases, cache, direction",
        ),
        (
            "io",
            [{"name": "x", "direction": "input", "dtype": "int64", "shape": [1.5]}],
            r"io\[0\]\.shape: expected a list",
        ),
    ],
)
def test_damaged_values(
    written: Callable[..., Path], path: str, value: Any, words: str
) -> None:
    with pytest.raises(
        EngineError, match=words + ".*The engine directory is damaged or of another version"
    ):
        EngineConfig.load(written(path, value))


def test_no_json(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(EngineError, match="not valid JSON"):
        EngineConfig.load(tmp_path)


def test_a_checkpoint_is_no_engine(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen3", "hidden_size": 48}')
    with pytest.raises(EngineError, match=r"is a model's checkpoint.* build --target"):
        EngineConfig.load(tmp_path)


def test_a_name_that_no_system_takes() -> None:
    with pytest.raises(EngineError, match="x…: File name too long"):
        EngineConfig.load(Path("x" * 5000))
