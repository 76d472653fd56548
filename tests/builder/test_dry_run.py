"""--dry-run: what a build needs and where it fits, for any arch, from headers alone."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import pytest

from tests.patience import seconds_of_children
from trtllm_dflash.builder.dry_run import preview_build
from trtllm_dflash.builder.host_costs import HostCosts
from trtllm_dflash.builder.resolve import resolve_models
from trtllm_dflash.builder.summary import summary_rows
from trtllm_dflash.catalog.gpus import gpus_of
from trtllm_dflash.catalog.pairs import PAIRS
from trtllm_dflash.catalog.published import drafter_json, target_json
from trtllm_dflash.checkpoint.writer import FileLayout
from trtllm_dflash.errors import BuildError, CheckpointError, UsageError
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
    begun = seconds_of_children()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert seconds_of_children() - begun < 30  # 2 on an idle machine; to read 227 GB takes more
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "engine").exists()
    assert f"{giant['bytes'] / 1e9:.1f} GB BF16" in done.stdout
    assert re.search(r"1 x B300 \(270 GB\) +fits; at most batch ", done.stdout)
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
    plan = made.plan
    rows = made.models.resolved.cache_len
    assert plan.engine_parts() == {
        "weights": giant["bytes"],
        "positions": 2 * rows * 128 * 4,
        "kernels": 2 * (2 * 1_150_000 + 650_000 + 99 * 800_000),
    }
    assert plan.cache_bytes_per_token() == {
        "target": 94 * 2 * 8 * 128 * 2,
        "drafter": 5 * 2 * 8 * 128 * 2 + 4,  # and the token's id
    }
    per_token = sum(plan.cache_bytes_per_token().values())
    assert made.models.cache_bytes_per_slot == rows * per_token
    # A prompt's chunk needs more than three slots' blocks. Its products and their rows need more
    # than attention, whose keys are in two splits: each has a float32 result, maximum and sum for
    # each row and head.
    # The drafts' logits take the room of the adjusted ones, which are chosen from before.
    logits = (16 + 15) * 151936 * 6
    assert 16 * 151936 * 33 // 8 < 15 * 151936 * 6
    mixed = 2 * (64 + 8) * 128
    products = 2 * 8_800_000 + 512 * (3 * 44032 + mixed) * 2
    assert 2 * 512 * 64 * (128 + 2) * 4 + 512 * mixed * 2 < products
    small = 1_000_000
    assert plan.step_bytes() == products + 512 * 9 * 8192 * 2 + logits + small
    assert (
        plan.total_bytes()
        == plan.engine_bytes + plan.step_bytes() + 3 * made.models.cache_bytes_per_slot
    )
    fit = next(fit for fit in made.fits() if fit.gpu.name == "B300")
    assert fit.as_asked
    # The target's own end is the last.
    assert list(fit.slots) == sorted(fit.slots) == [2048, 8192, 32768, 40960]
    slots = fit.slots[32768]
    used = plan.engine_bytes + slots * (32768 + 64) * per_token
    assert used < fit.gpu.memory_bytes < used + 2 * 32768 * per_token + 10e9


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


def test_a_disk_that_is_too_small_is_an_obstacle_and_no_end(
    make_target: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    made = preview_build(BuildConfig(str(make_target("llama")), tmp_path / "e"))
    (text,) = made.obstacles
    assert "1.0 kB free" in text


def test_nothing_is_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[str, bool]] = []

    def find(name: str, *, role: str, fetch: bool = True, **_: object) -> Path:
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
    assert bytes_["MXFP4"] + bytes_["BF16"] == found.plan.engine_parts()["weights"]
    key_and_value = 2 * 8 * 64 * 2  # bytes of a token in a layer's caches
    assert found.plan.cache_bytes_per_token() == {
        "target": 18 * key_and_value,
        "drafter": 8 * key_and_value + 4,  # and the token's id
    }
    rows = dict(summary_rows(found.models))
    for name in ("target", "drafter"):
        assert "no file of it is here: as its config.json is published" in rows[name]
    assert set(HostCosts(found.plan).downloads()) == {
        "openai/gpt-oss-120b",
        "z-lab/gpt-oss-120b-DFlash",
    }
    largest = found.fits()[0]
    assert largest.as_asked
    assert largest.slots[32768] > 8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "state_megabytes", "token_bytes"),
    [
        # Of a slot's states in float32, and of a token in the full layers' caches in BF16.
        ("Qwen3-Coder-Next", 36 * 32 / 16, 12 * 2 * 2 * 256 * 2),
        ("Qwen3.5-4B", 24 * 32 / 16, 8 * 2 * 4 * 256 * 2),
        ("Qwen3.5-9B", 24 * 32 / 16, 8 * 2 * 4 * 256 * 2),
        ("Qwen3.5-27B", 48 * 48 / 16, 16 * 2 * 4 * 256 * 2),
        ("Qwen3.5-35B-A3B", 30 * 32 / 16, 10 * 2 * 2 * 256 * 2),
        ("Qwen3.5-122B-A10B", 36 * 64 / 16, 12 * 2 * 2 * 256 * 2),
        ("Qwen3.5-397B-A17B", 45 * 64 / 16, 15 * 2 * 2 * 256 * 2),
        ("Qwen3.6-27B", 48 * 48 / 16, 16 * 2 * 4 * 256 * 2),
        ("Qwen3.6-35B-A3B", 30 * 32 / 16, 10 * 2 * 2 * 256 * 2),
    ],
)
def test_every_hybrid_pair_is_planned(
    name: str, state_megabytes: float, token_bytes: int, tmp_path: Path
) -> None:
    """Also the one that no GPU holds in BF16, which is neither built nor fetched."""
    pair = next(pair for pair in PAIRS if pair.name == name)
    asked = BuildConfig(name, tmp_path / "e", pair.drafter.repository, arch="sm103")
    found = preview_build(asked, quant="nvfp4")
    states = [
        port
        for port in found.models.io
        if port.name.startswith("target_state.") and not port.aliases
    ]
    assert sum(port.slot_bytes for port in states) == state_megabytes * 2**20
    assert found.plan.cache_bytes_per_token()["target"] == token_bytes
    assert found.fits()[-1].as_asked
    if pair.handover:
        with pytest.raises(
            BuildError, match="nothing was fetched, since it is larger than one"
        ):
            resolve_models(asked)
