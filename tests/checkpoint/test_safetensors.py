"""Header reading of sound files, against the safetensors package, and the dtypes that weights may
have.
"""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from tests.fixtures.tiny_models import write_safetensors
from trtllm_dflash.checkpoint.dtypes import DTYPE_BITS, NUMPY_DTYPES
from trtllm_dflash.checkpoint.safetensors import TensorInfo, read_tensor_infos
from trtllm_dflash.errors import CheckpointError

TENSORS = {"a": np.arange(6.0).reshape(2, 3), "b": np.array(1.5), "c": np.linspace(-1, 1, 7)}


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_arrays_are_the_written_values(tmp_path: Path, dtype: str) -> None:
    write_safetensors(tmp_path / "x.safetensors", TENSORS, dtype)
    infos = read_tensor_infos(tmp_path / "x.safetensors")
    assert list(infos) == list(TENSORS)
    for name, info in infos.items():
        array = info.array()
        assert array.shape == TENSORS[name].shape
        assert array.dtype == NUMPY_DTYPES[dtype]
        np.testing.assert_array_equal(array, TENSORS[name].astype(array.dtype))
        assert not array.flags.writeable


def test_reads_what_the_safetensors_package_writes(tmp_path: Path) -> None:
    package = pytest.importorskip("safetensors.numpy")
    tensors = {name: array.astype(np.float32) for name, array in TENSORS.items()}
    package.save_file(
        tensors | {"empty": np.zeros((0, 4), np.float32)},
        tmp_path / "x.safetensors",
        {"format": "pt"},
    )
    infos = read_tensor_infos(tmp_path / "x.safetensors")
    assert set(infos) == {*tensors, "empty"}
    for name, array in tensors.items():
        np.testing.assert_array_equal(infos[name].array(), array)


def test_the_safetensors_package_reads_tiny_files(tmp_path: Path) -> None:
    package = pytest.importorskip("safetensors.numpy")
    write_safetensors(tmp_path / "x.safetensors", TENSORS, "F32")
    for name, array in package.load_file(tmp_path / "x.safetensors").items():
        np.testing.assert_array_equal(array, TENSORS[name].astype(np.float32))


def test_file_without_tensors(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    assert read_tensor_infos(tmp_path / "x.safetensors") == {}


@pytest.mark.parametrize("dtype", sorted(set(DTYPE_BITS) - set(NUMPY_DTYPES)))
def test_other_dtypes_are_refused_by_name(dtype: str) -> None:
    info = TensorInfo("w", dtype, (8,), Path("x.safetensors"), 8, DTYPE_BITS[dtype])
    with pytest.raises(
        CheckpointError,
        match=f"x.safetensors: tensor w is {dtype}, and weights can be F32, F16, BF16",
    ):
        info.array()


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"none.safetensors: cannot be read .No such file"
    ):
        read_tensor_infos(tmp_path / "none.safetensors")


def test_bfloat16_is_ml_dtypes(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "x.safetensors", TENSORS, "BF16")
    assert (
        read_tensor_infos(tmp_path / "x.safetensors")["a"].array().dtype == ml_dtypes.bfloat16
    )
