"""The kernels of DFlashGatedDelta against float64, and bit for bit against plain decoding:
emulated, and on a GPU if there is one.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.plugins.gated_delta_reference import (
    HEAD_DIM,
    HISTORY,
    Arrays,
    Case,
    Slot,
    assert_close,
    inputs,
    lengths,
    raw_rows,
    run,
    split,
    weights,
)
from tests.plugins.library import BFLOAT16, Library, poisoned

pytestmark = pytest.mark.slow

CASES = [
    Case((Slot(20, 15, 1),), 16),  # 31 rows
    Case((Slot(5, 0, 1), Slot(0, 0, 7), Slot(100, 3, 2)), 7, key_heads=2, group=1),
    Case((Slot(2, 15, 16), Slot(1, 2, 3)), 16, group=4),
    Case((Slot(0, 0, 1),), 1, most_open=0),
    Case((Slot(1, 1, 1), Slot(0, 4, 1), Slot(0, 0, 2)), 3, key_heads=2, group=2, most_open=4),
    Case((Slot(9, 7, 40),), 40, group=1, most_open=7),  # two chunks of rows, a short window
    Case((Slot(0, 0, 70),), 75, group=1, most_open=63),  # three chunks
    Case(
        (Slot(70, 60, 3), Slot(2, 1, 36)), 36, group=1, most_open=63
    ),  # more open than a chunk
    Case((Slot(40, 15, 1),), 16, key_heads=16),  # of Qwen3.6-27B
    Case((Slot(3, 15, 9),), 16, group=2, kind="repeated"),
    Case((Slot(0, 0, 16),), 16, group=2, kind="repeated"),
    Case((Slot(30, 6, 2),), 8, kind="vanishing"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_close_to_float64(case: Case, library: Library) -> None:
    given = inputs(case)
    assert_close(case, given, run(library, case, given))


@pytest.mark.parametrize("known", [0, 1, 5, 15, 16])
@pytest.mark.parametrize("open_rows", [0, 1, 8, 15])
def test_the_state_stops_behind_any_row(open_rows: int, known: int, library: Library) -> None:
    """No certain row in a step is one in vain: the open rows go into the state, the rest stays."""
    case = Case((Slot(12, open_rows, known),), 16, group=1)
    given = inputs(case)
    assert_close(case, given, run(library, case, given))


@pytest.mark.parametrize("case", [CASES[1], CASES[5]], ids=str)
def test_the_same_bits_in_every_order(case: Case, library: Library) -> None:
    """Of CTAs, warps and lanes; and whatever else is in the batch."""
    found = []
    given = inputs(case)
    for seed, order in enumerate(("forward", "reverse", "random", "random")):
        library.order(order, seed)
        found.append(run(library, case, given))
    for other in found[1:]:
        for name, array in found[0].items():
            np.testing.assert_array_equal(other[name].view(np.uint8), array.view(np.uint8))
    for index, slot in enumerate(case.slots):
        batched = {"qkv", "gates", "window", "state", "past_len", "state_len", "num_known"}
        own = {name: x[[index]] if name in batched else x for name, x in given.items()}
        alone = run(library, replace(case, slots=(slot,)), own)
        for name, array in alone.items():
            np.testing.assert_array_equal(
                array[0].view(np.uint8), found[0][name][index].view(np.uint8)
            )


class Sequence:
    """One slot over many steps: what an engine keeps between them."""

    def __init__(self, library: Library, case: Case) -> None:
        self.library, self.case = library, case
        self.given = weights(case)
        rows = HISTORY + case.most_open
        columns = case.channels + 2 * case.value_heads
        self.window = poisoned((1, 1, rows, columns), BFLOAT16)
        self.state = poisoned((1, case.value_heads, HEAD_DIM, HEAD_DIM), np.float32)
        self.state_len = self.past_len = 0

    def step(self, rows: np.ndarray, known: int, accepted: int) -> np.ndarray:
        """Run rows [S, C+2Hv], of which `known` are certain, and then accept so many of the drafts;
        give out [S, Hv, D].
        """
        slot = Slot(self.state_len, self.past_len - self.state_len, known)
        case = replace(self.case, slots=(slot,), rows=len(rows))
        given = split(case, rows[None]) | {"window": self.window, "state": self.state}
        got = run(self.library, case, self.given | given | lengths(case))
        self.window, self.state = got["window"], got["state"]
        self.state_len = self.past_len + known
        self.past_len = self.state_len + accepted
        return got["out"][0]


def plainly(
    library: Library, case: Case, rows: np.ndarray
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return the outputs of row after row, and the states behind each."""
    sequence, outs, states = Sequence(library, case), [], []
    for row in rows:
        outs.append(sequence.step(row[None], 1, 0)[0])
        states.append(sequence.state)
    return np.stack(outs), states


def same_bits(left: np.ndarray, right: np.ndarray) -> None:
    np.testing.assert_array_equal(left.view(np.uint8), right.view(np.uint8))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["random", "repeated"])
def test_speculation_is_plain_decoding_bit_for_bit(
    kind: str, seed: int, library: Library
) -> None:
    """A prompt comes in pieces, then blocks of any width, of which any number of drafts is
    accepted. The outputs of what counts, and every state, are those of one row after another.
    """
    rng = np.random.default_rng(seed)
    case = Case((), 0, key_heads=1, group=2, most_open=9, kind=kind, seed=seed)
    true = raw_rows(case, rng, 60)
    library.order("random", seed)
    outs, states = plainly(library, replace(case, most_open=0), true)
    sequence, checked = Sequence(library, case), 0
    while sequence.past_len + 11 < len(true):
        begin = sequence.past_len
        known = int(rng.integers(1, 8)) if begin < 12 else 1
        drafts = int(rng.integers(0, 10)) if begin >= 12 else 0
        accepted = int(rng.integers(0, drafts + 1))
        rows = true[begin : begin + known + drafts].copy()
        rows[known + accepted :] = (
            raw_rows(case, rng, drafts - accepted) if drafts > accepted else 0
        )
        got = sequence.step(rows, known, accepted)
        same_bits(got[: known + accepted], outs[begin : begin + known + accepted])
        same_bits(sequence.state, states[begin + known - 1])
        checked += known + accepted
    assert checked > 40


def test_a_prompt_cut_anywhere_gives_the_same_bits(library: Library) -> None:
    """Pieces that fill no chunk of rows, one, or several."""
    case = Case((), 0, key_heads=1, group=1, most_open=3)
    rows = raw_rows(case, np.random.default_rng(4), 90)
    found = []
    for cuts in ((), (1, 2, 3), (32, 64), (31, 33, 70), (8, 16, 50)):
        sequence = Sequence(library, case)
        pieces = np.split(rows, cuts)
        outs = np.concatenate([sequence.step(piece, len(piece), 0) for piece in pieces])
        found.append((outs, sequence.state, sequence.window[:, :, :HISTORY]))
    for other in found[1:]:
        for left, right in zip(found[0], other, strict=True):
            same_bits(left, right)


def test_a_step_in_vain_changes_nothing_that_counts(library: Library) -> None:
    """Such steps are those of an ended sequence. A new sequence of that slot begins at 0 as in
    fresh memory.
    """
    case = Case((), 0, key_heads=1, group=1, most_open=5)
    rows = raw_rows(case, np.random.default_rng(5), 14)
    used, fresh = Sequence(library, case), Sequence(library, case)
    used.step(rows[:6], 1, 3)
    used.step(rows[6:12], 1, 5)
    used.state_len = used.past_len = 0
    for begin in (0, 7):
        outs = [one.step(rows[begin : begin + 7], 2, 0) for one in (used, fresh)]
        same_bits(*outs)
        same_bits(used.state, fresh.state)


@pytest.mark.parametrize(
    "wrong",
    [
        {"past_len": -5},
        {"past_len": 2**31 - 1},
        {"state_len": 2**31 - 1},
        {"state_len": -(2**31)},
        {"num_known": 2**31 - 1},
        {"num_known": -3},
    ],
    ids=str,
)
def test_lengths_that_cannot_be_stay_inside_the_tensors(
    wrong: dict[str, int], library: Library
) -> None:
    """The guards round every array hold; the other slot's results are its own."""
    case = Case((Slot(4, 2, 1), Slot(6, 1, 2)), 4, group=1, most_open=3)
    given = inputs(case)
    right = run(library, case, given)
    for name, value in wrong.items():
        given[name] = np.array([value, given[name][1]], np.int32)
    got = run(library, case, given)
    for name in ("out", "window", "state"):
        same_bits(got[name][1], right[name][1])


def test_a_wrong_result_would_be_seen(library: Library) -> None:
    """The bound is not so wide that a weight, a gate, a row or a length could be another."""
    case = Case((Slot(20, 5, 2),), 6)
    given = inputs(case)
    got = run(library, case, given)
    assert_close(case, given, got)

    def changed(name: str, index: tuple[int, ...]) -> Arrays:
        other = given | {name: given[name].copy()}
        other[name][index] = other[name][index] + 1
        return other

    changes = [("conv_weight", (7, 0, 2)), ("gates", (0, 1, 0)), ("a_log", (2,))]
    changes += [("window", (0, 0, 7, 3)), ("qkv", (0, 0, 400)), ("state", (0, 1, 3, 4))]
    for name, index in changes:
        with pytest.raises(AssertionError, match=r"slot 0|Mismatched"):
            assert_close(case, changed(name, index), got)
    for slot in (Slot(20, 4, 2), Slot(20, 5, 3)):
        with pytest.raises(AssertionError):
            assert_close(replace(case, slots=(slot,)), given, got)
