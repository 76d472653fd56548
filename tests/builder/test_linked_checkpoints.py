"""Checkpoints whose weights are links to another folder, as in the hub's cache."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.fixtures.engines import build_here
from tests.fixtures.tiny_models import tiny_drafter, tiny_target
from trtllm_dflash.options.build import BuildConfig


def _in_the_cache(checkpoint: Path, cache: Path) -> Path:
    """Return a snapshot of the hub's cache with the files of a checkpoint."""
    snapshot, blobs = cache / "snapshots" / "0123", cache / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(checkpoint.iterdir())):
        (blobs / str(number)).write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    return snapshot


@pytest.mark.parametrize("precision", [None, "int8"])
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_links_make_the_engine_of_the_files(
    dtype: str, precision: str | None, tmp_path: Path
) -> None:
    target = tiny_target(tmp_path / "t", "qwen3", dtype=dtype)
    drafter = tiny_drafter(tmp_path / "d", target, dtype=dtype)
    plain = BuildConfig(
        str(target),
        tmp_path / "plain",
        drafter=str(drafter),
        max_seq_len=64,
        weight_only_precision=precision,
    )
    linked = replace(
        plain,
        target=str(_in_the_cache(target, tmp_path / "models--org--t")),
        drafter=str(_in_the_cache(drafter, tmp_path / "models--org--d")),
        output_dir=tmp_path / "linked",
    )
    expected, found = map(build_here, (plain, linked))
    for name in ("rank0.safetensors", "model.onnx"):
        assert (found / name).read_bytes() == (expected / name).read_bytes()
