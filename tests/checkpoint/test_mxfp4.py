"""MXFP4 in numbers, and the same numbers as NVFP4, exactly."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from tests.fixtures.quantized import write_tensors
from tests.fixtures.tiny_moe import dequantize_mxfp4, random_mxfp4
from trtllm_dflash.checkpoint.mxfp4 import dequantized_experts, nvfp4_block_scales, nvfp4_scale
from trtllm_dflash.checkpoint.safetensors import TensorInfo, read_tensor_infos

SHAPE = (3, 10, 96)


def stored(directory: Path, parts: dict[str, np.ndarray]) -> dict[str, TensorInfo]:
    path = directory / "model.safetensors"
    write_tensors(path, {f"e_{kind}": ("U8", array) for kind, array in parts.items()})
    return read_tensor_infos(path)


def _random(spread: int = 2) -> dict[str, np.ndarray]:
    return random_mxfp4(np.random.default_rng(0), SHAPE, spread)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("spread", [2, 60])
def test_numbers(dtype: type, spread: int, tmp_path: Path) -> None:
    parts = _random(spread)
    got = dequantized_experts(stored(tmp_path, parts), "e", dtype)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got.astype(np.float64), dequantize_mxfp4(parts))


def test_every_exponent_is_exact_in_both_types(tmp_path: Path) -> None:
    """From 2^-127, which only subnormal numbers can hold, to the largest that does not overflow."""
    parts = random_mxfp4(np.random.default_rng(0), (1, 253, 32))
    parts["scales"][0, :, 0] = np.arange(253)
    tensors = stored(tmp_path, parts)
    for dtype in (np.float32, ml_dtypes.bfloat16):
        np.testing.assert_array_equal(
            dequantized_experts(tensors, "e", dtype).astype(float), dequantize_mxfp4(parts)
        )


def _as_nvfp4(tensors: dict[str, TensorInfo], parts: dict[str, np.ndarray]) -> np.ndarray:
    """Return the values under NVFP4's scales: block scale times global scale, for each 16."""
    scale = nvfp4_scale(tensors, "e")
    assert scale is not None
    block_scales = nvfp4_block_scales(tensors, "e", scale)
    assert block_scales.dtype == ml_dtypes.float8_e4m3fn
    assert block_scales.shape == (*SHAPE[:2], SHAPE[2] // 16)
    ones = {"blocks": parts["blocks"], "scales": np.full_like(parts["scales"], 127)}
    products = block_scales.astype(np.float32) * np.float32(scale)
    return dequantize_mxfp4(ones) * np.repeat(products, 16, axis=-1)


@pytest.mark.parametrize("spread", [0, 2, 17])
def test_nvfp4_has_the_same_numbers(spread: int, tmp_path: Path) -> None:
    parts = _random(spread)
    assert len(np.unique(parts["scales"])) == spread + 1
    tensors = stored(tmp_path, parts)
    np.testing.assert_array_equal(_as_nvfp4(tensors, parts), dequantize_mxfp4(parts))
    np.testing.assert_array_equal(_as_nvfp4(tensors, parts), dequantized_experts(tensors, "e"))


def test_no_nvfp4_has_exponents_further_apart(tmp_path: Path) -> None:
    parts = _random(0)
    parts["scales"][1, 2, 1] -= 18
    assert nvfp4_scale(stored(tmp_path, parts), "e") is None
    parts["scales"][1, 2, 1] += 1
    assert nvfp4_scale(stored(tmp_path, parts), "e") == 2.0 ** (-4 - 8)


def test_a_block_of_zeros_needs_no_exponent(tmp_path: Path) -> None:
    """Of either sign; its neighbours keep theirs."""
    parts = _random()
    parts["scales"][2, 9, 2] = 0
    parts["blocks"][2, 9, 2] = 0x80
    tensors = stored(tmp_path, parts)
    np.testing.assert_array_equal(_as_nvfp4(tensors, parts), dequantize_mxfp4(parts))
    parts["blocks"][2, 9, 2, 7] = 0x10
    assert nvfp4_scale(stored(tmp_path, parts), "e") is None


def test_scales_that_a_compiler_may_flush_to_zero_are_none(tmp_path: Path) -> None:
    """The smallest product is 2^(k-17) for the largest exponent k, and must be a normal float32."""
    for largest, fits in ((18, True), (17, False)):
        parts = _random(0)
        parts["scales"][:] = largest
        assert (nvfp4_scale(stored(tmp_path, parts), "e") is not None) == fits
