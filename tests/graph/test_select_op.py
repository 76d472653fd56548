"""The body of DFlashSelect against its meaning in float64."""

from __future__ import annotations

import numpy as np
import pytest

from tests.graph.run_op import run_op
from tests.plugins.select_reference import Case, inputs, select


@pytest.mark.parametrize(
    "case",
    [
        Case(1, 1, 1, 1, 1),
        Case(2, 2, 40, 12, 16),
        Case(3, 7, 211, 5, 16),
        Case(1, 64, 90, 8, 64),
        Case(2, 33, 77, 3, 2),
    ],
    ids=str,
)
def test_whole_numbers(case: Case) -> None:
    """Every sum is exact, and most scores tie: the likelier, then the lower place wins."""
    arrays = {name: array.astype(np.float32) for name, array in inputs(case).items()}
    expected, _ = select(arrays, case.top_k)
    got = run_op("DFlashSelect", arrays, top_k=case.top_k)["places"]
    np.testing.assert_array_equal(got, expected)


def test_one_candidate_is_the_argmax() -> None:
    arrays = {k: v.astype(np.float32) for k, v in inputs(Case(2, 5, 60, 4, 1)).items()}
    got = run_op("DFlashSelect", arrays, top_k=1)["places"]
    np.testing.assert_array_equal(got, arrays["logits"].argmax(-1))
