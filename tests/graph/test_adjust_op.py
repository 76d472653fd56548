"""The body of DFlashAdjust against its meaning in NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from tests.graph.run_op import run_op
from tests.plugins.adjust_reference import CASES, Case, adjust, inputs


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("variant", [{}, {"pairwise": 1}], ids=["scattered", "pairwise"])
def test_every_number(case: Case, variant: dict[str, int]) -> None:
    """Bit for bit; slots that ask for nothing keep their logits."""
    arrays = inputs(case)
    expected = adjust(arrays)
    silent = np.isnan(expected["adjusted"])
    expected["adjusted"][silent] = arrays["logits"][silent]
    positions = np.arange(int(arrays["past_len"].max()) + case.width)
    got = run_op("DFlashAdjust", {**arrays, "kv_positions": positions}, **variant)
    for name, values in expected.items():
        np.testing.assert_array_equal(got[name], values, err_msg=name)


def test_the_cases_forbid_and_allow() -> None:
    """Some words fit and some do not: the cases can tell."""
    forbidden = 0
    for case in CASES:
        arrays = inputs(case)
        arrays["adjusts"] &= 4
        found = adjust(arrays)["adjusted"]
        forbidden += int(np.isneginf(found).sum())
    assert forbidden > 20
