"""--dry-run: what a build needs and where it fits, for any arch, from headers alone."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import DEMO
from trtllm_dflash.builder.dry_run import preview_build
from trtllm_dflash.builder.summary import summary_rows
from trtllm_dflash.catalog.gpus import gpus_of
from trtllm_dflash.catalog.pairs import PAIRS
from trtllm_dflash.catalog.published import drafter_json, target_json
from trtllm_dflash.checkpoint.writer import FileLayout
from trtllm_dflash.errors import CheckpointError, UsageError
from trtllm_dflash.models.drafter import DrafterConfig
from trtllm_dflash.models.registry import read_target_config
from trtllm_dflash.models.tensor_specs import (
    expand_specs,
    resolve_shape,
)
from trtllm_dflash.options.build import BuildConfig

QWEN3_8B = next(pair for pair in PAIRS if pair.name == "Qwen3-8B")


def sparse_checkpoint(directory: Path, config_json: Mapping[str, Any], config: Any) -> int:
    """Write a checkpoint with real headers and no weights, return its bytes.

    It has two shards, each a header and a hole.
    """
    directory.mkdir()
    rows = {
        name: tuple(resolve_shape(row, config))
        for name, row in expand_specs(config.tensors.used, config).items()
    }
    weight_map: dict[str, str] = {}
    for index in range(2):
        shard = f"model-{index + 1:05d}-of-00002.safetensors"
        names = list(rows)[index::2]
        layout = FileLayout.of({name: ("BF16", rows[name]) for name in names})
        with (directory / shard).open("wb") as file:
            file.write(layout.header)
            file.truncate(layout.nbytes)
        weight_map |= dict.fromkeys(names, shard)
    (directory / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": weight_map})
    )
    (directory / "config.json").write_text(json.dumps(config_json))
    return sum(2 * prod(shape) for shape in rows.values())


@pytest.fixture
def giant(tmp_path: Path) -> dict[str, Any]:
    """Return a Qwen3 of 114 billion weights (227 GB in BF16), its drafter, and `bytes` of both."""
    shape = {
        "num_hidden_layers": 94,
        "hidden_size": 8192,
        "intermediate_size": 44032,
        "num_attention_heads": 64,
    }
    target = target_json(replace(QWEN3_8B.target, config={**QWEN3_8B.target.config, **shape}))
    drafter = drafter_json(
        replace(
            QWEN3_8B.drafter,
            config={**QWEN3_8B.drafter.config, "hidden_size": 8192, "num_target_layers": 94},
        )
    )
    config = read_target_config(target, None, "")
    total = sparse_checkpoint(tmp_path / "target", target, config)
    total += sparse_checkpoint(
        tmp_path / "drafter", drafter, DrafterConfig.from_hf(drafter, "")
    )
    return {
        "target": str(tmp_path / "target"),
        "drafter": str(tmp_path / "drafter"),
        "bytes": total,
    }


def test_a_huge_checkpoint_takes_seconds_and_megabytes(
    giant: dict[str, Any], tmp_path: Path
) -> None:
    assert giant["bytes"] > 220e9
    arguments = ["build", "--dry-run", "--arch", "sm103"]
    arguments += ["--target", giant["target"], "--drafter", giant["drafter"]]
    arguments += ["--output-dir", str(tmp_path / "engine")]
    script = (
        "import atexit\n"
        "from trtllm_dflash.hardware.memory import peak_memory\n"
        "from trtllm_dflash.cli import main\n"
        "atexit.register(lambda: print('peak', peak_memory()))\n"
        f"main({arguments})\n"
    )
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert time.monotonic() - begun < 30  # 2 s on an idle machine; reading 227 GB takes minutes
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "engine").exists()
    assert f"{giant['bytes'] / 1e9:.1f} GB BF16" in done.stdout
    assert "1 x B300 (270 GB)  fits; at most batch " in done.stdout
    assert "not here  it needs TensorRT, which is not installed here" in done.stdout
    peak = int(done.stdout.split("peak ")[1])
    assert peak < 400_000_000  # 85 MB measured, nearly all of it Python and its libraries


def test_the_arithmetic(giant: dict[str, Any], tmp_path: Path) -> None:
    made = preview_build(
        BuildConfig(
            giant["target"], tmp_path / "e", giant["drafter"], arch="sm103", max_batch_size=3
        )
    )
    assert made.models.bytes_by_format == {"BF16": giant["bytes"]}
    assert (
        made.engine_bytes == made.models.weight_bytes == giant["bytes"]
    )  # its head is not tied
    assert made.cache_bytes_per_token == {
        "target": 94 * 2 * 8 * 128 * 2,
        "drafter": 5 * 2 * 8 * 128 * 2,
    }
    rows = made.models.resolved.cache_len
    assert made.models.cache_bytes_per_slot == rows * sum(made.cache_bytes_per_token.values())
    logits = 3 * (16 + 15) * 151936 * 4
    assert made.step_bytes == logits + 512 * (2 * 44032 + 9 * 8192) * 2
    assert (
        made.total_bytes
        == made.engine_bytes + made.step_bytes + 3 * made.models.cache_bytes_per_slot
    )
    (fit,) = made.fits()
    assert fit.gpu.name == "B300"
    assert fit.as_asked
    assert (
        list(fit.slots) == sorted(fit.slots) == [2048, 8192, 32768, 40960]
    )  # the target's own end
    slots = fit.slots[32768]
    used = giant["bytes"] + slots * (32768 + 64) * sum(made.cache_bytes_per_token.values())
    assert (
        used
        < fit.gpu.memory_bytes
        < used + 2 * 32768 * sum(made.cache_bytes_per_token.values()) + 0.1 * 45e9
    )


def test_what_does_not_fit_is_said(giant: dict[str, Any], tmp_path: Path) -> None:
    made = preview_build(
        BuildConfig(giant["target"], tmp_path / "e", giant["drafter"], arch="sm120")
    )
    assert {str(fit) for fit in made.fits()} == {"does not fit; nor would any batch"}
    assert len(made.fits()) == len(gpus_of("sm120"))


@pytest.mark.slow
def test_formats_are_counted_apart(
    modelopt_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    pytest.importorskip("modelopt")
    made = preview_build(
        BuildConfig(
            str(modelopt_checkpoint("qwen3", "nvfp4")),
            tmp_path / "e",
            arch="sm100",
            plugins=False,
        )
    )
    formats = made.models.bytes_by_format
    assert set(formats) == {"NVFP4", "BF16"}
    assert sum(formats.values()) == made.models.weight_bytes
    on_cpu = preview_build(
        BuildConfig(str(modelopt_checkpoint("qwen3", "nvfp4")), tmp_path / "e")
    )
    assert set(on_cpu.models.bytes_by_format) == {"F32"}
    assert on_cpu.fits() == []


def test_a_tied_head_is_there_twice(make_target: Callable[..., Path], tmp_path: Path) -> None:
    made = preview_build(
        BuildConfig(
            str(make_target("qwen3", tied=True)), tmp_path / "e", arch="sm120", plugins=False
        )
    )
    assert made.engine_bytes == made.models.weight_bytes + 97 * 48 * 2


@pytest.mark.demo("sm120")
def test_the_estimate_is_near_a_real_engine(tmp_path: Path) -> None:
    pair = DEMO.parent / "examples" / "demo_pair" / "drafter"
    vocab = str(pair / "draft_vocab.json")
    made = preview_build(
        BuildConfig(
            str(DEMO / "target"), tmp_path / "e", str(pair), arch="sm120", draft_vocab=vocab
        )
    )
    real = (DEMO / "sm120" / "rank0.engine").stat().st_size
    # Tables of positions, kernels and the compiler's own: 2.7 % measured, a small part that shrinks
    # with the model.
    assert made.engine_bytes < real < 1.05 * made.engine_bytes


def test_a_disk_that_is_too_small_is_an_obstacle_and_no_end(
    make_target: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    made = preview_build(BuildConfig(str(make_target("llama")), tmp_path / "e"))
    (text,) = made.obstacles
    assert "1.0 kB free" in text


def test_nothing_is_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[str, bool]] = []

    def find(name: str, *, role: str, fetch: bool = True) -> Path:
        asked.append((role, fetch))
        raise CheckpointError(f"{name}: not here")

    monkeypatch.setattr("trtllm_dflash.builder.resolve.find_directory", find)
    preview_build(
        BuildConfig("Qwen3-8B", tmp_path / "e", "z-lab/Qwen3-8B-DFlash-b16", arch="sm100")
    )
    assert asked == [("target", False), ("drafter", False)]
    with pytest.raises(CheckpointError, match="nobody/nothing: not here"):
        preview_build(BuildConfig("nobody/nothing", tmp_path / "e", arch="sm100"))


def test_an_output_in_the_way_is_still_refused(
    make_target: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(UsageError, match="is not empty"):
        preview_build(BuildConfig(str(make_target("llama")), tmp_path))


@pytest.mark.parametrize("arch", ["sm100", "sm120"])
def test_a_known_pair_is_planned_from_what_is_published(arch: str, tmp_path: Path) -> None:
    """gpt-oss-120b without a file or a network: 116.8 billion parameters, 36 layers half of them
    windowed.
    """
    found = preview_build(
        BuildConfig("gpt-oss-120b", tmp_path / "engine", "z-lab/gpt-oss-120b-DFlash", arch=arch)
    )
    target = found.models.target
    assert round(target.num_parameters / 1e9, 1) == 116.8
    bytes_ = found.models.bytes_by_format
    assert bytes_["MXFP4"] == 36 * 128 * (5760 + 2880) * (2880 // 2 + 2880 // 32)
    assert bytes_["MXFP4"] + bytes_["BF16"] == found.engine_bytes
    key_and_value = 2 * 8 * 64 * 2  # bytes of a token in a layer's caches
    assert found.cache_bytes_per_token == {
        "target": 18 * key_and_value,
        "drafter": 8 * key_and_value,
    }
    rows = dict(summary_rows(found.models))
    for name in ("target", "drafter"):
        assert "no file of it is here: as its config.json is published" in rows[name]
    largest = found.fits()[0]
    assert largest.as_asked
    assert largest.slots[32768] > 8
