"""What `quantize` refuses before anything is fetched, imported or written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.speculators import speculators_drafter
from tests.fixtures.tiny_models import tiny_drafter
from trtllm_dflash.catalog.pairs import pair_of
from trtllm_dflash.catalog.published import target_json
from trtllm_dflash.checkpoint import locate
from trtllm_dflash.errors import CheckpointError, ConfigError, DFlashError, UsageError
from trtllm_dflash.options.quantize import QuantizeConfig
from trtllm_dflash.quantize import requirements
from trtllm_dflash.quantize.plan import plan_quantization


@pytest.fixture(autouse=True)
def fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, ...]]:
    """Record what would be fetched; an unlisted repository's config.json is `hub/config.json`."""
    asked: list[tuple[str, ...]] = []

    def fetch(name: str, files: tuple[str, ...], *, fetch: bool) -> Path:
        asked.append(files)
        if files == locate.HUB_FILES:
            raise CheckpointError("the weights were fetched")
        return tmp_path / "hub"

    monkeypatch.setattr(locate, "_fetch", fetch)
    return asked


def plan(target: str, tmp_path: Path, **options: Any) -> None:
    quant = options.pop("quant", "fp8")
    plan_quantization(QuantizeConfig(target, tmp_path / "out", quant, **options))


@pytest.mark.slow  # quick, but `make test` has no ModelOpt
def test_listed_targets_with_experts_are_taken(
    tmp_path: Path, fetched: list[tuple[str, ...]]
) -> None:
    pytest.importorskip("modelopt")
    pair = pair_of("Qwen3-Coder-30B-A3B")
    assert pair is not None
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "config.json").write_text(json.dumps(target_json(pair.target)))
    with pytest.raises(CheckpointError, match="the weights were fetched"):
        plan("Qwen3-Coder-30B-A3B", tmp_path, quant="nvfp4")
    assert fetched == [locate.CONFIG_FILES, locate.HUB_FILES]


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("Qwen/Qwen3-32B-FP8", "FP8_BLOCK"),
        ("gpt-oss-20b", "MXFP4"),
        ("openai/gpt-oss-120b", "MXFP4"),
    ],
)
def test_listed_targets_that_are_quantized(
    name: str, stored: str, tmp_path: Path, fetched: list[tuple[str, ...]]
) -> None:
    with pytest.raises(DFlashError, match=rf"already quantized \({stored} and BF16\)"):
        plan(name, tmp_path)
    assert not fetched


def test_options_for_experts_without_any(tmp_path: Path, llama: Path) -> None:
    with pytest.raises(UsageError, match=r"--calib-all-experts: target .* has no experts"):
        plan(str(llama), tmp_path, calib_all_experts=True)
    with pytest.raises(UsageError, match="--quant w4a16_nvfp4 has none; leave it out"):
        plan(str(llama), tmp_path, quant="w4a16_nvfp4", calib_all_experts=True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["FalconForCausalLM"]}, "supported targets are"),
        ({"quantization_config": {"quant_method": "awq"}}, 'quant_method is "awq"'),
        (
            {"quantization_config": {"quant_method": "modelopt", "quant_algo": "FP8"}},
            "it is already quantized",
        ),
        ({"hidden_size": 40}, "a scale for every 16 inputs of a linear"),
    ],
)
def test_unlisted_target_by_its_configuration_alone(
    changes: dict[str, Any],
    words: str,
    tmp_path: Path,
    llama: Path,
    fetched: list[tuple[str, ...]],
) -> None:
    config = json.loads((llama / "config.json").read_text()) | changes
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "config.json").write_text(json.dumps(config))
    with pytest.raises((CheckpointError, ConfigError), match=words):
        plan("org/unlisted", tmp_path, quant="nvfp4")
    assert fetched == [locate.CONFIG_FILES]


def _without_a_number_of_layers(directory: Path, target: Path) -> Path:
    return tiny_drafter(directory, target, config={"num_target_layers": None})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_without_a_number_of_layers, "does not run without the key num_target_layers"),
        (speculators_drafter, "does not read the layout of speculators"),
    ],
)
def test_drafters_that_the_reference_package_misreads(
    make: Callable[[Path, Path], Path], words: str, tmp_path: Path, llama: Path
) -> None:
    """It runs only when the whole target has been quantized."""
    drafter = make(tmp_path / "drafter", llama)
    with pytest.raises(CheckpointError, match=f"{words}, as this one needs"):
        plan(str(llama), tmp_path, drafter=str(drafter))


def test_missing_packages_before_the_weights(
    tmp_path: Path,
    llama: Path,
    monkeypatch: pytest.MonkeyPatch,
    fetched: list[tuple[str, ...]],
) -> None:
    monkeypatch.setattr(requirements, "find_spec", lambda _: None)
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "config.json").write_text((llama / "config.json").read_text())
    with pytest.raises(DFlashError, match="quantizing needs ModelOpt and torch"):
        plan("org/unlisted", tmp_path)
    assert fetched == [locate.CONFIG_FILES]


def _empty(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "empty.jsonl").touch()
    return {"calib_file": tmp_path / "empty.jsonl"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (lambda path: {"calib_file": path / "none.txt"}, "cannot be read"),
        (lambda path: {"calib_file": path}, "cannot be read"),
        (_empty, "is empty"),
    ],
)
def test_calibration_file_before_the_target(
    options: Callable[[Path], dict[str, Any]],
    words: str,
    tmp_path: Path,
    fetched: list[tuple[str, ...]],
) -> None:
    with pytest.raises(UsageError, match=words):
        plan("org/unlisted", tmp_path, **options(tmp_path))
    assert not fetched


@pytest.mark.parametrize("place", ["file", "file/below", "full"])
def test_output_before_the_target(
    place: str, tmp_path: Path, fetched: list[tuple[str, ...]]
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    with pytest.raises(UsageError, match=r"output-dir|no directory"):
        plan_quantization(QuantizeConfig("org/unlisted", tmp_path / place, "fp8"))
    assert not fetched


def test_unknown_name(tmp_path: Path, fetched: list[tuple[str, ...]]) -> None:
    with pytest.raises(CheckpointError, match="the nearest are Qwen3-8B"):
        plan("Qwen3-8X", tmp_path)
    assert not fetched


def test_packages_are_asked_after_the_files(
    tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requirements, "find_spec", lambda _: None)
    config = json.loads((llama / "config.json").read_text()) | {"num_hidden_layers": 9}
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "config.json").write_text(json.dumps(config))
    (tmp_path / "t" / "model.safetensors").symlink_to(llama / "model.safetensors")
    with pytest.raises(CheckpointError, match="give --allow-links"):
        plan(str(tmp_path / "t"), tmp_path)
