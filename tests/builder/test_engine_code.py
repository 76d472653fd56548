"""The code in real TensorRT-RTX engines: how it grows with layers, and our kernels in it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fixtures.tiny_dflash2 import tiny_dflash2
from tests.fixtures.tiny_models import tiny_target
from trtllm_dflash.builder.build_engine import build_engine
from trtllm_dflash.engine_dir import manifest
from trtllm_dflash.engine_dir.files import ENGINE_FILE
from trtllm_dflash.options.build import BuildConfig

pytestmark = pytest.mark.slow

pytest.importorskip("tensorrt_rtx")
pytest.importorskip("cuda.bindings.nvrtc")

LAYERS = (2, 4)


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    ("slots", "drafts", "plugins", "profiles", "limit"),
    [
        (1, False, True, 1, 500_000),
        (1, True, True, 1, 500_000),
        (3, False, True, 2, 1_050_000),
        (3, False, False, 2, 610_000),
    ],
)
def test_a_layers_code_and_each_kernel_once_a_profile(
    slots: int,
    drafts: bool,
    plugins: bool,
    profiles: int,
    limit: int,
    make_target: Callable[..., Path],
    make_drafter: Callable[..., Path],
    tmp_path: Path,
) -> None:
    beyond = []
    for layers in LAYERS:
        target = make_target("llama", dtype="BF16", head_dim=64, num_layers=layers)
        drafter = make_drafter(target, dtype="BF16", head_dim=64, num_layers=1, taps=(0,))
        config = BuildConfig(
            str(target),
            tmp_path / f"of_{layers}",
            str(drafter) if drafts else None,
            arch="sm120",
            plugins=plugins,
            max_seq_len=128,
            max_batch_size=slots,
        )
        build_engine(config)
        engine = (config.output_dir / ENGINE_FILE).read_bytes()
        beyond.append(len(engine) - (target / "model.safetensors").stat().st_size)
        for kernel in manifest.load(config.output_dir)["kernels"]:
            found = _images(engine, kernel["bytes"], kernel["sha256"])
            assert found == profiles, kernel["kernel"]
    assert (beyond[1] - beyond[0]) / (LAYERS[1] - LAYERS[0]) < limit


@pytest.mark.parametrize(
    ("tied", "vocab", "plugins"), [(True, 16001, True), (False, 16000, False)]
)
def test_a_head_is_stored_once(tied: bool, vocab: int, plugins: bool, tmp_path: Path) -> None:
    """TensorRT-RTX would store it again, 16 MB, for a tied table of an odd number of rows.

    So it would, joined with the selector's projection, if both were products of the same rows.
    """
    sizes = {"hidden": 512, "layers": 2, "head_dim": 64}
    target = tiny_target(
        tmp_path / "target", tied=tied, vocab_size=vocab, dtype="BF16", sizes=sizes
    )
    drafter = tiny_dflash2(
        tmp_path / "drafter", target, dtype="BF16", head_dim=64, num_layers=1, taps=(0,)
    )
    config = BuildConfig(
        str(target),
        tmp_path / "engine",
        str(drafter),
        arch="sm120",
        plugins=plugins,
        max_seq_len=64,
        gather_generation_logits=plugins,
    )
    engine = build_engine(config).directory / ENGINE_FILE
    weights = sum((model / "model.safetensors").stat().st_size for model in (target, drafter))
    code = 8_000_000 if plugins else 22_000_000
    assert engine.stat().st_size < weights + code + vocab * 512


def _images(engine: bytes, size: int, digest: str) -> int:
    """Return how many ELF images of this size and sha256 are in an engine."""
    count, place = 0, engine.find(b"\x7fELF")
    while place >= 0:
        image = engine[place : place + size]
        count += hashlib.sha256(image).hexdigest() == digest
        place = engine.find(b"\x7fELF", place + 1)
    return count
