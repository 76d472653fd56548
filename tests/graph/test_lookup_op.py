"""The body of DFlashLookup against its meaning in plain Python."""

from __future__ import annotations

import numpy as np
import pytest

from tests.graph.run_op import run_op
from tests.plugins.lookup_reference import CASES, Case, inputs, lookup, what_followed


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_number(case: Case) -> None:
    arrays = inputs(case)
    expected = lookup(arrays)
    positions = np.arange(int(arrays["next_len"].max()) + 1)
    got = run_op("DFlashLookup", {**arrays, "kv_positions": positions})
    for name, values in expected.items():
        np.testing.assert_array_equal(got[name], values, err_msg=name)


def test_the_cases_choose_both_sources_and_all_classes() -> None:
    seen = {int(row[0]) for case in CASES for row in lookup(inputs(case))["next_tally"]}
    assert seen == set(range(6))


@pytest.mark.parametrize(
    ("text", "length", "drafts"),
    [
        ([1, 2, 3, 9, 1, 2], 2, [3, 9, 1, 2, 3]),
        ([1, 2, 8, 1, 2, 9, 1, 2], 2, [9, 1, 2, 9, 1]),  # the latest of equals
        ([5, 1, 2, 8, 1, 2, 9, 5, 1, 2], 3, [8, 1, 2, 9, 5]),  # the longest
        ([7, 7], 1, [7, 7, 7, 7, 7]),
        ([4, 5], 0, [5, 5, 5, 5, 5]),
        ([1, 2, 1, 2, 1], 3, [2, 1, 2, 1, 2]),
    ],
)
def test_what_followed(text: list[int], length: int, drafts: list[int]) -> None:
    """The reference itself, on texts whose drafts can be seen."""
    assert what_followed(text, 5) == (length, drafts)
