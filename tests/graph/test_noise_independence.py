"""The noise of samples is uniform, and that of neighbours independent.

By the twin in NumPy, whose bits are those of body and kernel (`test_accept_op`, and
`test_accept_kernels` of the plugins).
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.fixtures.noise import PRIME, Array, noise_bits
from trtllm_dflash.runtime.preprocess import noise_key

CELLS = 12
SIGMAS = 5.0  # of a chi-square statistic, by its normal approximation
POSITIONS, TOKENS, SEEDS = np.arange(70), np.arange(40), range(40)


@pytest.fixture(scope="module")
def bits() -> Array:
    """Return those of seeds, positions and tokens that follow each other, [S, P, V]."""
    keys = [np.array(noise_key(seed)) for seed in SEEDS]
    return np.stack([noise_bits(key, POSITIONS, TOKENS) for key in keys])


def _check_even(counts: Array) -> None:
    """Check numbers of a fixed total, which all are expected to be the same."""
    expected = counts.mean()
    statistic = ((counts - expected) ** 2 / expected).sum()
    freedom = counts.size - 1
    assert abs(statistic - freedom) < SIGMAS * np.sqrt(2 * freedom)


def test_noise_of_neighbouring_seeds_and_positions_is_uniform(bits: Array) -> None:
    _check_even(np.bincount((bits * 500 // PRIME).ravel(), minlength=500))


@pytest.mark.parametrize("axis", [0, 1, 2], ids=["seeds", "positions", "tokens"])
@pytest.mark.parametrize("distance", [1, 2, 16])
def test_noise_of_neighbours_is_independent(bits: Array, axis: int, distance: int) -> None:
    """Pairs fall evenly into the cells of a square, whatever they differ in."""
    cells = bits * CELLS // PRIME
    first, second = np.split(cells, [distance], axis=axis)[1], cells
    second = np.take(second, np.arange(cells.shape[axis] - distance), axis=axis)
    _check_even(np.bincount((first * CELLS + second).ravel(), minlength=CELLS**2))


@pytest.mark.parametrize("axis", [0, 1, 2], ids=["seeds", "positions", "tokens"])
def test_the_largest_of_some_tokens_is_any_other_time(bits: Array, axis: int) -> None:
    """What a flat distribution samples does not depend on the sample before."""
    groups = np.moveaxis(bits, axis, 0)
    groups = groups[: len(groups) // 5 * 5].reshape(-1, 5, *groups.shape[1:])
    winners = groups.argmax(axis=1)
    _check_even(np.bincount(winners.ravel(), minlength=5))
    pairs = winners[1:] * 5 + winners[:-1]
    _check_even(np.bincount(pairs.ravel(), minlength=25))
