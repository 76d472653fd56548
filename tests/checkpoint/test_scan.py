"""Finding values that are not finite, and differences, chunk by chunk."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from tests.fixtures.quantized import write_tensors
from tests.fixtures.tiny_models import write_safetensors
from trtllm_dflash.checkpoint import scan
from trtllm_dflash.checkpoint.dtypes import NUMPY_DTYPES, WEIGHT_DTYPES
from trtllm_dflash.checkpoint.safetensors import TensorInfo, read_tensor_infos


def stored(path: Path, array: np.ndarray, dtype: str) -> TensorInfo:
    write_safetensors(path, {"pad": np.zeros(3), "w": array}, dtype)
    return read_tensor_infos(path)["w"]


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        scan, "CHUNK_BYTES", 64
    )  # 16 elements a chunk: every boundary case in 50 elements


@pytest.mark.parametrize("dtype", WEIGHT_DTYPES)
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("index", [0, 15, 16, 31, 49])
def test_finds_every_position(
    small_chunks: None, tmp_path: Path, dtype: str, value: float, index: int
) -> None:
    array = np.linspace(-9, 9, 50)
    array[index] = value
    info = stored(tmp_path / "x", array.reshape(5, 10), dtype)
    assert scan.first_nonfinite(info) == (index // 10, index % 10)


@pytest.mark.parametrize("dtype", WEIGHT_DTYPES)
def test_extreme_finite_values_pass(small_chunks: None, tmp_path: Path, dtype: str) -> None:
    numpy_dtype = NUMPY_DTYPES[dtype]
    limits = {"F32": (3.4e38, 1e-45), "F16": (65504.0, 6e-8), "BF16": (3.38e38, 9.2e-41)}[dtype]
    array = np.array([limits[0], -limits[0], limits[1], -limits[1], 0.0, -0.0])
    assert np.isfinite(array.astype(numpy_dtype).astype(np.float64)).all()
    assert scan.first_nonfinite(stored(tmp_path / "x", array, dtype)) is None


def test_e4m3_has_two_codes_for_nan(small_chunks: None, tmp_path: Path) -> None:
    codes = np.arange(256, dtype=np.uint8).view(NUMPY_DTYPES["F8_E4M3"]).reshape(8, 32)
    for first, found in ((0x7F, (3, 31)), (0xFF, (7, 31))):
        kept = np.where(
            codes.view(np.uint8) == first, np.uint8(first), codes.view(np.uint8) & 0x7E
        )
        write_tensors(tmp_path / "x", {"w": ("F8_E4M3", kept.view(codes.dtype))})
        assert scan.first_nonfinite(read_tensor_infos(tmp_path / "x")["w"]) == found


@pytest.mark.parametrize(
    ("dtype", "good", "bad"),
    [
        ("F32", [1e-45, 1.0, 3e38], [0.0, -0.0, -1e-45, float("nan"), float("-inf")]),
        ("F8_E4M3", [2.0**-9, 1.0, 448.0], [0.0, -0.0, -(2.0**-9), -448.0, float("nan")]),
    ],
)
def test_finds_what_is_not_above_zero(
    small_chunks: None, tmp_path: Path, dtype: str, good: list[float], bad: list[float]
) -> None:
    array = np.resize(good, 50)
    write_tensors(tmp_path / "x", {"w": (dtype, array)})
    assert scan.first_nonpositive(read_tensor_infos(tmp_path / "x")["w"]) is None
    for value in bad:
        array[37] = value
        write_tensors(tmp_path / "x", {"w": (dtype, array.reshape(5, 10))})
        assert scan.first_nonpositive(read_tensor_infos(tmp_path / "x")["w"]) == (3, 7)


def test_progress_adds_up(small_chunks: None, tmp_path: Path) -> None:
    info = stored(tmp_path / "x", np.zeros(50), "BF16")
    sizes: list[int] = []
    assert scan.first_nonfinite(info, progress=sizes.append) is None
    assert sum(sizes) == info.nbytes
    assert len(sizes) == 4


def test_differences_across_dtypes(small_chunks: None, tmp_path: Path) -> None:
    array = np.arange(50.0).reshape(25, 2)
    other = array.copy()
    assert (
        scan.first_difference(
            stored(tmp_path / "a", array, "F32"), stored(tmp_path / "b", array, "BF16")
        )
        is None
    )
    other[20, 1] = 0
    assert scan.first_difference(
        stored(tmp_path / "a", array, "F32"), stored(tmp_path / "b", other, "F32")
    ) == (
        20,
        1,
    )


def test_memory_is_a_few_chunks(tmp_path: Path) -> None:
    info = stored(tmp_path / "x", np.zeros((1 << 13, 1 << 11), np.float32), "F32")
    assert info.nbytes > 7 * scan.CHUNK_BYTES
    tracemalloc.start()
    assert scan.first_nonfinite(info) is None
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Chunk, masked exponents, comparison; the next chunk is read before the last is freed.
    assert peak < 4 * scan.CHUNK_BYTES
