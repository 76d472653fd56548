"""Files that are written in a given order, with offsets that are known before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

safetensors = pytest.importorskip("safetensors.numpy")

from trtllm_dflash.checkpoint.safetensors import read_tensor_infos
from trtllm_dflash.checkpoint.writer import FORMAT, FileLayout, write_arrays, write_file

TENSORS = {
    "z": ("F32", np.arange(6, dtype=np.float32).reshape(2, 3)),
    "none": ("U8", np.zeros((0, 4), np.uint8)),
    "one": ("F32", np.array(1.5, np.float32)),
    "a": ("U8", np.arange(7, dtype=np.uint8)),
}


@pytest.mark.parametrize("alignment", [8, 64])
def test_a_layout_says_where_each_tensor_lies(alignment: int, tmp_path: Path) -> None:
    described = {name: (dtype, array.shape) for name, (dtype, array) in TENSORS.items()}
    layout = FileLayout.of(described, alignment=alignment, metadata=FORMAT)
    path = tmp_path / "x.safetensors"
    write_file(path, layout, [array.tobytes() for _, array in TENSORS.values()])
    infos = read_tensor_infos(path)
    assert list(infos) == list(TENSORS)
    assert {name: info.offset for name, info in infos.items()} == layout.offsets
    assert layout.offsets["z"] % alignment == 0
    assert path.stat().st_size == layout.nbytes


def test_the_safetensors_package_reads_what_is_written(tmp_path: Path) -> None:
    write_arrays(tmp_path / "x.safetensors", TENSORS)
    found = safetensors.load_file(tmp_path / "x.safetensors")
    assert found.keys() == TENSORS.keys()
    for name, (_, array) in TENSORS.items():
        np.testing.assert_array_equal(found[name], array)


def test_buffers_may_be_of_any_size(tmp_path: Path) -> None:
    layout = FileLayout.of({"w": ("U8", [5])})
    write_file(tmp_path / "x", layout, [b"ab", b"", b"cde"])
    assert read_tensor_infos(tmp_path / "x")["w"].array().tobytes() == b"abcde"


@pytest.mark.parametrize("buffers", [[b"abcd"], [b"abc", b"def"]])
def test_bytes_that_do_not_fit_the_layout(buffers: list[bytes], tmp_path: Path) -> None:
    layout = FileLayout.of({"w": ("U8", [5])})
    with pytest.raises(OSError, match=r"bytes were written, expected"):
        write_file(tmp_path / "x", layout, buffers)


def test_four_bit_tensors_have_half_a_byte_an_element() -> None:
    layout = FileLayout.of({"w": ("F4", [6, 2]), "b": ("F32", [1])})
    assert layout.offsets["b"] - layout.offsets["w"] == 6
