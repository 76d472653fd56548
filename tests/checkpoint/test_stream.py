"""Finding values that are not finite, and differences, chunk by chunk."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from tests.tiny import write_safetensors
from trtllm_dflash.checkpoint import stream
from trtllm_dflash.checkpoint.safetensors import NUMPY_DTYPES, TensorInfo, read_tensor_infos


def stored(path: Path, array: np.ndarray, dtype: str) -> TensorInfo:
    write_safetensors(path, {"pad": np.zeros(3), "w": array}, dtype)
    return read_tensor_infos(path)["w"]


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "CHUNK_BYTES", 64)  # 16 elements a chunk: every boundary case in 50 elements


@pytest.mark.parametrize("dtype", NUMPY_DTYPES)
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("index", [0, 15, 16, 31, 49])
def test_finds_every_position(small_chunks: None, tmp_path: Path, dtype: str, value: float, index: int) -> None:
    array = np.linspace(-9, 9, 50)
    array[index] = value
    info = stored(tmp_path / "x", array.reshape(5, 10), dtype)
    assert stream.first_nonfinite(info) == (index // 10, index % 10)


@pytest.mark.parametrize("dtype", NUMPY_DTYPES)
def test_extreme_finite_values_pass(small_chunks: None, tmp_path: Path, dtype: str) -> None:
    numpy_dtype = NUMPY_DTYPES[dtype]
    limits = {"F32": (3.4e38, 1e-45), "F16": (65504.0, 6e-8), "BF16": (3.38e38, 9.2e-41)}[dtype]
    array = np.array([limits[0], -limits[0], limits[1], -limits[1], 0.0, -0.0])
    assert np.isfinite(array.astype(numpy_dtype).astype(np.float64)).all()
    assert stream.first_nonfinite(stored(tmp_path / "x", array, dtype)) is None


def test_progress_adds_up(small_chunks: None, tmp_path: Path) -> None:
    info = stored(tmp_path / "x", np.zeros(50), "BF16")
    sizes: list[int] = []
    assert stream.first_nonfinite(info, progress=sizes.append) is None
    assert sum(sizes) == info.nbytes
    assert len(sizes) == 4


def test_differences_across_dtypes(small_chunks: None, tmp_path: Path) -> None:
    array = np.arange(50.0).reshape(25, 2)
    other = array.copy()
    assert stream.first_difference(stored(tmp_path / "a", array, "F32"), stored(tmp_path / "b", array, "BF16")) is None
    other[20, 1] = 0
    assert stream.first_difference(stored(tmp_path / "a", array, "F32"), stored(tmp_path / "b", other, "F32")) == (
        20,
        1,
    )


def test_memory_is_a_few_chunks(tmp_path: Path) -> None:
    info = stored(tmp_path / "x", np.zeros((1 << 13, 1 << 11), np.float32), "F32")
    assert info.nbytes > 7 * stream.CHUNK_BYTES
    tracemalloc.start()
    assert stream.first_nonfinite(info) is None
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Chunk, masked exponents, comparison; the next chunk is read before the last is freed.
    assert peak < 4 * stream.CHUNK_BYTES
