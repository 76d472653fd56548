"""The kernels of DFlashSelect against float64 and the operator's body, in the emulator and on a
GPU.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.graph.run_op import run_op
from tests.plugins.library import Library
from tests.plugins.select_reference import (
    Arrays,
    Case,
    assert_selected,
    inputs,
    run,
    select,
)

pytestmark = pytest.mark.slow

CASES = [
    Case(1, 1, 1, 1, 1),
    Case(2, 3, 5, 3, 5),
    Case(3, 7, 211, 12, 16),
    Case(1, 7, 8192, 8, 16),
    Case(2, 2, 8193, 64, 16),
    Case(2, 3, 16387, 65, 7),
    Case(1, 4, 9001, 256, 33),
    Case(1, 63, 130, 24, 64),
    Case(2, 15, 1031, 72, 48),
    Case(1, 2, 40000, 7, 64),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_ties_go_to_the_first(any_order: Library, case: Case) -> None:
    """Whole numbers: most scores tie, and each sum is exact whatever its order."""
    arrays = inputs(case)
    expected, _ = select(arrays, case.top_k)
    np.testing.assert_array_equal(run(any_order, arrays, case.top_k), expected)
    np.testing.assert_array_equal(_body(arrays, case.top_k), expected)


@pytest.mark.parametrize(
    "case", [Case(4, 7, 4001, 256, 16, whole=False), Case(2, 30, 999, 100, 64, whole=False)]
)
def test_random_numbers(library: Library, case: Case) -> None:
    """The lead of each choice is beyond float32's rounding, so one place is right."""
    arrays = inputs(case)
    expected = run(library, arrays, case.top_k)
    assert_selected(case, arrays, expected)
    np.testing.assert_array_equal(_body(arrays, case.top_k), expected)
    assert (expected != arrays["logits"].argmax(-1)).mean() > 0.5


def test_nan_and_infinities(any_order: Library) -> None:
    """NaN is last among logits and scores; what is left is chosen as ever."""
    case = Case(6, 5, 300, 16, 9)
    arrays = inputs(case)
    logits = arrays["logits"]
    logits[0, :, ::2] = np.nan
    logits[1, :, :] = np.nan
    logits[2, :, 3:] = -np.inf
    logits[3, 2, [17, 40]] = np.inf
    logits[4, :, 4:] = np.nan
    arrays["hidden"][5, 1:3] = np.nan
    arrays["successor"][7] = np.nan
    expected, _ = select(arrays, case.top_k)
    np.testing.assert_array_equal(run(any_order, arrays, case.top_k), expected)
    np.testing.assert_array_equal(_body(arrays, case.top_k), expected)


def test_zeros_of_both_signs_tie(library: Library) -> None:
    arrays = inputs(Case(1, 3, 64, 8, 5))
    arrays["logits"][:] = np.where(np.arange(64) % 2, 0.0, -0.0)
    expected, _ = select(arrays, 5)
    np.testing.assert_array_equal(run(library, arrays, 5), expected)


@pytest.mark.parametrize("vocab", [20_000, 20_001, 20_002, 20_003])
@pytest.mark.parametrize("kind", ["rising", "falling", "one thread", "last"])
def test_the_likeliest_anywhere(library: Library, vocab: int, kind: str) -> None:
    """Rows that begin at any address; the candidates all in one thread's elements, too."""
    arrays = inputs(Case(2, 2, vocab, 8, 16, seed=vocab))
    order = np.arange(vocab, dtype=np.float32)
    if kind == "falling":
        order = -order
    elif kind == "one thread":
        order = np.where(np.arange(vocab) % 512 < 4, order, -1.0)
    elif kind == "last":
        order = np.where(np.arange(vocab) >= vocab - 16, 1.0, 0.0)
    arrays["logits"][:] = order
    expected, _ = select(arrays, 16)
    np.testing.assert_array_equal(run(library, arrays, 16), expected)


def test_more_chunks_than_a_merge_holds(library: Library) -> None:
    """Beyond 128 chunks of 8192 logits each chunk grows."""
    vocab = 128 * 8192 + 5
    arrays = inputs(Case(1, 2, vocab, 2, 16, whole=False))
    arrays["logits"][0, 1, -3:] = 9.0
    expected, leads = select(arrays, 16)
    assert leads[0, 0] > 1e-5
    np.testing.assert_array_equal(run(library, arrays, 16), expected)


def test_the_vocabulary_of_qwen(library: Library) -> None:
    case = Case(1, 7, 248320, 24, 16, whole=False, seed=1)
    arrays = inputs(case)
    expected, leads = select(arrays, case.top_k)
    assert leads.min() > 1e-5, "choose another seed"
    np.testing.assert_array_equal(run(library, arrays, case.top_k), expected)


def test_slots_do_not_depend_on_each_other(library: Library) -> None:
    case = Case(5, 6, 777, 40, 16, whole=False)
    arrays = inputs(case)
    together = run(library, arrays, case.top_k)
    for slot in range(case.batch):
        alone = {
            name: array[slot : slot + 1]
            if name in ("logits", "hidden", "anchor_row")
            else array
            for name, array in arrays.items()
        }
        np.testing.assert_array_equal(run(library, alone, case.top_k)[0], together[slot])


def _body(arrays: Arrays, top_k: int) -> np.ndarray:
    wide = {name: array.astype(np.float32) for name, array in arrays.items()}
    return run_op("DFlashSelect", wide, top_k=top_k)["places"]
