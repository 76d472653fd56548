"""What block-scaled products would change in numbers: roundings, and the table of the page."""

from __future__ import annotations

import importlib
from types import ModuleType

import ml_dtypes
import numpy as np
import pytest

from tests.plugins.library import PLUGINS

# Block size, the type of numbers, and those that are exact with a block's largest, which is last.
KEPT = {
    "to_mxfp8": (32, ml_dtypes.float8_e4m3fn, [0.25, -1.75, 30, 416]),
    "to_mxfp4": (32, ml_dtypes.float4_e2m1fn, [0.5, -1.5, 3, 6]),
    "to_nvfp4": (16, ml_dtypes.float4_e2m1fn, [0.5, -1.5, 3, 6]),
}


@pytest.fixture
def rounded(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(PLUGINS / "bench"))
    return importlib.import_module("rounded_activations")


@pytest.mark.parametrize("name", KEPT)
def test_numbers_of_the_format_stay(name: str, rounded: ModuleType) -> None:
    """In each block its own scale, a power of two apart."""
    size, _, numbers = KEPT[name]
    x = np.zeros((3, 2 * size))
    x[:, : len(numbers)] = numbers
    x[:, size : size + len(numbers)] = np.array(numbers) / 16
    np.testing.assert_array_equal(getattr(rounded, name)(x), x)


@pytest.mark.parametrize("name", KEPT)
def test_no_number_of_the_format_is_nearer(name: str, rounded: ModuleType) -> None:
    """Where the largest is a number of the format, whose block has a scale of one."""
    size, dtype, numbers = KEPT[name]
    count = 256 if dtype is ml_dtypes.float8_e4m3fn else 16
    codes = np.arange(count, dtype=np.uint8).view(dtype).astype(np.float64)
    codes = codes[np.isfinite(codes)]
    x = np.random.default_rng(0).uniform(-numbers[-1], numbers[-1], (50, size))
    x[:, 0] = numbers[-1]
    got = getattr(rounded, name)(x)
    nearest = np.abs(x[..., None] - codes).min(-1)
    np.testing.assert_allclose(np.abs(got - x), nearest, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_the_page_has_the_table(rounded: ModuleType) -> None:
    assert rounded.table() in (PLUGINS / "README.md").read_text()
