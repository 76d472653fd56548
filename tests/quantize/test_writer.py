"""The checkpoint writer: unchanged bytes, shards with their index, alignment."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from tests.fixtures.tiny_models import write_safetensors
from trtllm_dflash.checkpoint.dtypes import DTYPE_BITS
from trtllm_dflash.checkpoint.index import read_all_tensor_infos
from trtllm_dflash.checkpoint.safetensors import TensorInfo, read_tensor_infos
from trtllm_dflash.log import ignore_progress
from trtllm_dflash.quantize.writer import SpillFolder, write_tensors


@pytest.fixture
def infos(tmp_path: Path) -> dict[str, TensorInfo]:
    """Tensors of four kinds, from a checkpoint and from memory."""
    random = np.random.default_rng(0)
    write_safetensors(
        tmp_path / "source.safetensors",
        {"a": random.random((3, 5)), "b": random.random(7)},
        "BF16",
    )
    packed = {
        "codes": torch.arange(33, dtype=torch.uint8).reshape(3, 11),
        "scales": torch.tensor([[0.5, 448.0, 2**-9]]).to(torch.float8_e4m3fn),
        "scale": torch.tensor(0.25),
        "transposed": torch.arange(6, dtype=torch.float32).reshape(2, 3).T,
    }
    return read_tensor_infos(tmp_path / "source.safetensors") | SpillFolder(
        tmp_path / "scratch"
    ).add(packed)


def test_write_tensors_keeps_bytes_and_shapes(
    infos: dict[str, TensorInfo], tmp_path: Path
) -> None:
    steps: list[tuple[str, int, int]] = []
    (tmp_path / "out").mkdir()
    write_tensors(tmp_path / "out", infos, lambda *step: steps.append(step))
    got = read_all_tensor_infos(tmp_path / "out")
    assert got.keys() == infos.keys()
    for name, info in got.items():
        assert (info.dtype, info.shape) == (infos[name].dtype, infos[name].shape)
        assert info.array().tobytes() == infos[name].array().tobytes()
        assert info.offset % (DTYPE_BITS[info.dtype] // 8) == 0
    assert got["transposed"].array().tolist() == [[0, 3], [1, 4], [2, 5]]
    assert steps[-1] == ("writing", *[sum(info.nbytes for info in infos.values())] * 2)


def test_write_tensors_in_shards_with_an_index(
    infos: dict[str, TensorInfo], tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    write_tensors(tmp_path / "out", infos, ignore_progress, shard_bytes=40)
    shards = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    assert len(shards) > 2
    got = read_all_tensor_infos(tmp_path / "out")
    assert {name: info.array().tobytes() for name, info in got.items()} == {
        name: info.array().tobytes() for name, info in infos.items()
    }
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(info.nbytes for info in infos.values())


def test_write_tensors_refuses_a_shortened_source(
    infos: dict[str, TensorInfo], tmp_path: Path
) -> None:
    source = tmp_path / "source.safetensors"
    source.write_bytes(source.read_bytes()[:-4])
    with pytest.raises(OSError, match="has become shorter"):
        write_tensors(tmp_path, infos, ignore_progress)
