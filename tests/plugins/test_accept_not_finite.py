"""Rows of logits that are not finite: the accept kernels and the operator's body agree on them."""

from __future__ import annotations

import numpy as np
import pytest

from tests.graph.run_op import run_op
from tests.plugins.library import Library
from tests.plugins.test_accept_kernels import CHUNK, accept_case, run_accept

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("vocab", [1, 6, CHUNK + 2])
def test_bad_logits_give_no_token(any_order: Library, vocab: int, bad: float) -> None:
    """The new id is -1, and the bonus is in the vocabulary all the same.

    Some rows hold nothing else, some have it among numbers: there -infinity is only never chosen.
    """
    logits = np.random.default_rng(0).standard_normal((8, 1, vocab))
    logits[:2] = bad
    logits[2:4, :, vocab // 2 :] = bad
    logits[4:6, :, : vocab // 2] = bad
    logits[6:, :, vocab - 1] = bad
    filters = {
        "temperature": [0, 1, 0, 1, 0, 1, 0, 1],
        "top_p": [0.5, 0.5, 0.5, 1, 1, 1, 1, 1],
        "top_k": [0, 0, 0, 3, 0, 0, 0, 0],
    }
    arrays = accept_case(logits, **filters)
    got = run_accept(any_order, arrays)
    expected = run_op("DFlashAccept", arrays)
    for name in ("num_new", "next_len"):
        np.testing.assert_array_equal(got[name], expected[name])
    decided = np.isfinite(logits.max(-1))[:, 0]
    assert not decided[:2].any()
    np.testing.assert_array_equal(got["new_ids"][:, 0] >= 0, decided)
    np.testing.assert_array_equal(expected["new_ids"][:, 0] >= 0, decided)
    bonus = got["bonus"][:, 0]
    assert ((bonus >= 0) & (bonus < vocab)).all()
    np.testing.assert_array_equal(got["new_ids"][decided, 0], bonus[decided])


def test_bad_row_confirms_no_draft(any_order: Library) -> None:
    """Of the rows around it nothing changes; the body says the same."""
    logits = np.random.default_rng(3).standard_normal((3, 5, 40))
    choice = logits.argmax(-1)
    ids = np.concatenate([np.zeros((3, 1)), choice[:, :4]], axis=1)
    logits[0, 2, 39 - choice[0, 2]] = np.nan
    logits[1, 4, 0] = np.inf
    arrays = accept_case(logits, input_ids=ids)
    got = run_accept(any_order, arrays)
    assert got["num_new"].tolist() == [3, 5, 5]
    assert got["new_ids"][0].tolist() == [*choice[0, :2], -1, -1, -1]
    assert got["new_ids"][1].tolist() == [*choice[1, :4], -1]
    assert got["new_ids"][2].tolist() == choice[2].tolist()
    expected = run_op("DFlashAccept", arrays)
    for name in ("num_new", "next_len", "new_ids"):
        np.testing.assert_array_equal(got[name], expected[name])
