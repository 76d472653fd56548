"""The kernels of DFlashBlockLinear against float64, over odd shapes: emulated, and on a GPU where
one is. The operator's body is held to the same.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from tests.graph.run_op import run_op
from tests.plugins.block_linear_reference import Case, assert_close, expected, inputs
from tests.plugins.library import FP8, Library
from tests.plugins.moe_reference import FLOAT32_HALF

pytestmark = pytest.mark.slow

ORDERS = ("forward", "reverse", "random")


def run(library: Library, case: Case, given: dict[str, np.ndarray]) -> np.ndarray:
    library.order(case.order, case.seed)
    return library.block_linear(given)


def _cases() -> list[Case]:
    """Rows that fill no tile, columns that fill no chunk, slab or block, every tile of tokens."""
    sizes = [(1, 16), (7, 48), (16, 128), (127, 144), (129, 272), (200, 2064), (264, 1040)]
    tokens = (1, 3, 8, 9, 16, 17, 31, 33, 64, 65, 128, 129, 300)
    made = [
        Case(count, *sizes[n % len(sizes)], bias=n % 3 == 0) for n, count in enumerate(tokens)
    ]
    made += [Case((2, 12, 40)[n % 3], *size, bias=n % 2 == 1) for n, size in enumerate(sizes)]
    made += [Case(5, rows, 144) for rows in (8, 9, 15, 17, 128, 130)]
    return [replace(case, order=ORDERS[n % 3], seed=n) for n, case in enumerate(made)]


@pytest.mark.parametrize("case", _cases(), ids=str)
def test_block_linear(case: Case, library: Library) -> None:
    given = inputs(case)
    assert_close(case, given, run(library, case, given))


@pytest.mark.parametrize(
    ("out_size", "in_size", "bias"), [(1, 16, False), (129, 272, True), (260, 144, False)]
)
def test_the_body_is_the_reference(out_size: int, in_size: int, bias: bool) -> None:
    case = Case(6, out_size, in_size, bias)
    given = {
        name: array.astype(np.float32) if name in ("x", "bias") else array
        for name, array in inputs(case).items()
    }
    out, _ = expected(given)
    got = run_op("DFlashBlockLinear", given)["out"]
    np.testing.assert_allclose(got, out, rtol=0, atol=(in_size + 8) * FLOAT32_HALF * 16)


def test_every_code_is_its_number(library: Library) -> None:
    """All 254 codes that are numbers, each alone in a row."""
    number = np.array([n for n in range(256) if n & 0x7F != 0x7F], np.uint8)
    packed = np.zeros((len(number), 16), np.uint8)
    packed[np.arange(len(number)), np.arange(len(number)) % 16] = number
    given = {
        "x": np.eye(16, dtype=np.float32).astype(inputs(Case(1, 1, 16))["x"].dtype),
        "weight": packed.view(np.int32),
        "scales": np.ones((2, 1), np.float32),
    }
    got = library.block_linear(given).astype(np.float32)
    np.testing.assert_array_equal(got.T, packed.view(FP8).astype(np.float32))


@pytest.mark.parametrize("tokens", [1, 20, 70])
def test_the_same_bits_in_every_order(tokens: int, library: Library) -> None:
    case = Case(tokens, 200, 400, bias=True)
    given = inputs(case)
    first = run(library, case, given).view(np.uint16)
    for seed, order in enumerate(("forward", "reverse", "random", "random")):
        again = run(library, replace(case, order=order, seed=seed), given)
        np.testing.assert_array_equal(again.view(np.uint16), first)


@pytest.mark.parametrize("tokens", [1, 11, 25, 140])
def test_a_token_is_its_own(tokens: int, library: Library) -> None:
    """Whatever tokens are beside it in a step of as many."""
    case = Case(tokens, 144, 272)
    given = inputs(case)
    first = run(library, case, given).view(np.uint16)
    for kept in {0, tokens - 1}:
        x = np.full_like(given["x"], np.nan)
        x[kept] = given["x"][kept]
        other = run(library, case, given | {"x": x}).view(np.uint16)
        np.testing.assert_array_equal(other[kept], first[kept])


@pytest.mark.parametrize(("row", "column"), list(product((0, 1, 2), (0, 1, 2))))
def test_a_scale_counts_in_its_block_alone(row: int, column: int, library: Library) -> None:
    """NaN in one of 3 x 3 scales, the last ones of partial blocks."""
    given = inputs(Case(3, 260, 272))
    given["scales"][row, column] = np.nan
    got = library.block_linear(given).astype(np.float32)
    is_nan = np.isnan(got).all(axis=0)
    assert np.isfinite(got[:, ~is_nan]).all()
    np.testing.assert_array_equal(np.flatnonzero(is_nan) // 128, np.full(is_nan.sum(), row))
    assert is_nan.sum() == (4 if row == 2 else 128)


def test_a_wrong_result_would_be_seen(library: Library) -> None:
    """The bound is not so wide that the signs of four weights, or a scale, could be another."""
    case = Case(4, 144, 272)
    given = inputs(case)
    got = run(library, case, given)
    changes = {"weight": (5, 3, 0x80808080), "scales": (0, 1, 1 << 20)}
    for name, (row, column, bits) in changes.items():
        changed = {key: array.copy() for key, array in given.items()}
        changed[name].view(np.uint32)[row, column] ^= np.uint32(bits)
        with pytest.raises(AssertionError, match="wrong, first at"):
            assert_close(case, changed, got)
