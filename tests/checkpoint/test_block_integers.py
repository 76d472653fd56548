"""Weights as integers by block: what they stand for, and how far that is from the weights."""

from __future__ import annotations

import numpy as np
import pytest

from trtllm_dflash.checkpoint.block_integers import (
    BITS,
    BLOCK_LENGTH,
    BlockIntegers,
    block_integer_bytes,
    num_blocks,
)
from trtllm_dflash.options.build import WEIGHT_ONLY

COLUMNS = 76  # two blocks, and a part of one


def _weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(20)
    normal = rng.standard_normal((37, COLUMNS)).astype(np.float32)
    spiked = normal.copy()
    spiked[::3, ::17] *= 50
    return {
        "normal": normal,
        "of one sign": np.abs(normal) + 3,
        "with outliers": spiked,
        "tiny": normal * np.float32(1e-30),
        "zeros": np.zeros_like(normal),
    }


def _step(weight: np.ndarray, bits: int) -> np.ndarray:
    """Return the larger scale of both ways of rounding for each weight."""
    padded = np.pad(weight, ((0, 0), (0, -COLUMNS % BLOCK_LENGTH)))
    blocks = padded.reshape(len(weight), -1, BLOCK_LENGTH)
    low, high = np.minimum(blocks.min(-1), 0), np.maximum(blocks.max(-1), 0)
    shifted = (high - low) / (2**bits - 1)
    symmetric = np.maximum(-low, high) / (2 ** (bits - 1) - 1)
    return np.repeat(np.maximum(shifted, symmetric), BLOCK_LENGTH, axis=1)[:, :COLUMNS]


def test_precisions_are_those_of_the_option() -> None:
    assert tuple(BITS) == WEIGHT_ONLY


@pytest.mark.parametrize("precision", BITS)
@pytest.mark.parametrize("name", _weights())
def test_a_weight_errs_by_half_a_scale(name: str, precision: str) -> None:
    weight, bits = _weights()[name], BITS[precision]
    integers = BlockIntegers.of(weight, bits)
    error = np.abs(integers.dequantized(COLUMNS) - weight)
    scales = np.repeat(integers.scales, BLOCK_LENGTH, axis=1)[:, :COLUMNS]
    assert (error <= scales * np.float32(0.5001)).all()
    assert (error <= _step(weight, bits) * np.float32(0.5001)).all()


@pytest.mark.parametrize("precision", BITS)
def test_blocks_have_the_better_zero_point(precision: str) -> None:
    """Symmetric blocks keep the middle; blocks of one sign use all codes for it."""
    bits = BITS[precision]
    top = 2**bits - 1
    one_sign = np.linspace(0, 1, BLOCK_LENGTH, dtype=np.float32)[None]
    assert BlockIntegers.of(one_sign, bits).zero_points.tolist() == [[0]]
    assert BlockIntegers.of(-one_sign, bits).zero_points.tolist() == [[top]]
    half = 2 ** (bits - 1)
    exact = np.array([[-half + 1, half - 1, *([1, -1, 0] * 10)]], np.float32)
    integers = BlockIntegers.of(exact, bits)
    assert integers.zero_points.tolist() == [[half]]
    np.testing.assert_array_equal(integers.dequantized(BLOCK_LENGTH), exact)


@pytest.mark.parametrize("precision", BITS)
def test_bytes_are_those_of_the_arrays(precision: str) -> None:
    bits = BITS[precision]
    integers = BlockIntegers.of(_weights()["normal"], bits)
    stored = (integers.packed, integers.scales, integers.packed_zero_points())
    assert integers.packed.shape == (37, num_blocks(COLUMNS), 4 * bits)
    expected = block_integer_bytes(37, COLUMNS, bits)
    assert sum(array.nbytes for array in stored) == expected


def test_rows_are_rounded_by_themselves() -> None:
    """More rows than are rounded at a time, and a row that none beside it changes."""
    weight = np.random.default_rng(2).standard_normal((5000, 48)).astype(np.float32)
    whole = BlockIntegers.of(weight, 8)
    alone = BlockIntegers.of(weight[4321:4322], 8)
    np.testing.assert_array_equal(whole.packed[4321:4322], alone.packed)
    np.testing.assert_array_equal(whole.scales[4321:4322], alone.scales)
