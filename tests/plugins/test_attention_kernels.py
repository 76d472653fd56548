"""The attention kernels against float64 over shapes that are odd on purpose: emulated, and on a GPU
if there is one.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.plugins.attention_cases import (
    H200,
    drafts_cases,
    drawn_cases,
    edges_cases,
    fp8_cases,
    heads_cases,
    long_cases,
    mixed_cases,
    prefill_cases,
    splits_cases,
    windows_cases,
)
from tests.plugins.attention_reference import (
    Case,
    assert_close,
    inputs,
    written_caches,
)
from tests.plugins.library import Library

pytestmark = pytest.mark.slow


def _bits(array: np.ndarray) -> np.ndarray:
    """Comparable where it holds NaN."""
    return array.view(f"u{array.itemsize}")


def _run(
    library: Library, case: Case, given: dict[str, np.ndarray], seed: int = 0
) -> dict[str, np.ndarray]:
    library.order(case.order, seed)
    return library.attention(
        "draft" if case.draft else "verify",
        given,
        scale=case.head_dim**-0.5,
        window=case.window,
        causal=case.causal,
        processors=case.processors,
        cache_scales=case.cache_scales,
    )


def check(library: Library, case: Case) -> None:
    """Check that the caches are exact and the result is as near to float64's as eager bfloat16."""
    given = inputs(case)
    assert_close(case, given, _run(library, case, given))


@pytest.mark.parametrize("case", heads_cases(), ids=str)
def test_heads(library: Library, case: Case) -> None:
    check(library, case)


@pytest.mark.parametrize("case", windows_cases(), ids=str)
def test_windows(library: Library, case: Case) -> None:
    check(library, case)


@pytest.mark.parametrize("case", drafts_cases(), ids=str)
def test_drafts(library: Library, case: Case) -> None:
    check(library, case)


@pytest.mark.parametrize("case", long_cases(), ids=str)
def test_long_contexts(library: Library, case: Case) -> None:
    check(library, case)


@pytest.mark.parametrize("case", splits_cases(), ids=str)
def test_more_splits_than_keys(library: Library, case: Case) -> None:
    check(library, case)


@pytest.mark.parametrize("case", mixed_cases(), ids=str)
def test_mixed_lengths(library: Library, case: Case) -> None:
    check(library, case)


def test_more_slots_than_threads(library: Library) -> None:
    lengths = tuple(int(length) for length in np.random.default_rng(5).integers(0, 90, 150))
    check(library, Case((*lengths, 600), 1, 64, 1, 1, processors=7))


@pytest.mark.parametrize("cache_scales", [None, (0.01, 0.02)])
def test_bits_do_not_depend_on_other_lengths(
    library: Library, cache_scales: tuple[float, float] | None
) -> None:
    """A sequence is split by its own length alone, and its splits are merged in their order."""
    case = Case((1500, 700, 40, 300), 6, 64, 1, 4, processors=30, cache_scales=cache_scales)
    given = inputs(case)
    plan = library.attention_plan(4, 6, 4, 1, 64, given["key_cache"].shape[2], 0, 30)
    assert plan.split_limit > 2
    expected = _run(library, case, given)["out"]
    moved = {**given, "positions": given["positions"].copy()}
    for slot, start in ((0, 2), (2, 1400), (3, 0)):
        moved["positions"][slot] += start - given["positions"][slot, 0]
    out = _run(library, case, moved)["out"]
    np.testing.assert_array_equal(_bits(out[1]), _bits(expected[1]))
    assert (_bits(out[2]) != _bits(expected[2])).any()


@pytest.mark.parametrize("case", edges_cases(), ids=str)
def test_edges_of_tiles(library: Library, case: Case) -> None:
    check(library, case)


@pytest.mark.parametrize("case", prefill_cases(), ids=str)
def test_prefill(library: Library, case: Case) -> None:
    check(library, case)


@pytest.mark.parametrize("case", drawn_cases(60), ids=lambda case: f"{case}-spare{case.spare}")
def test_drawn_shapes(library: Library, case: Case) -> None:
    check(library, case)


@pytest.mark.parametrize(
    "case",
    [
        Case((33, 70), 8, 128, 2, 4, processors=8),
        Case((5, 90), 17, 64, 1, 8, sinks=True),
        Case((20,), 40, 96, 1, 7, window=9, processors=H200),
        Case(
            (64, 3), 10, 256, 1, 4, context_rows=8, committed=(3, 8), causal=False, processors=4
        ),
        Case((40, 100), 12, 96, 2, 4, processors=8, cache_scales=(0.01, 0.02)),
        Case((900, 1200), 8, 64, 1, 8, processors=3),
        Case((700, 3), 16, 128, 1, 4, processors=H200),
    ],
    ids=str,
)
def test_the_same_bits_in_any_order(library: Library, case: Case) -> None:
    """Whatever the order of CTAs, warps and lanes, or in whatever way a GPU has it: no race decides
    a bit.
    """
    given = inputs(case)
    first = _run(library, case, given)
    for seed in range(6):
        order = ("reverse", "random")[seed > 0]
        again = _run(library, replace(case, order=order), given, seed)
        for name, expected in first.items():
            np.testing.assert_array_equal(
                _bits(again[name]), _bits(expected), err_msg=f"{name}, {order} {seed}"
            )


@pytest.mark.parametrize("case", fp8_cases(), ids=str)
def test_fp8_caches(library: Library, case: Case) -> None:
    """Codes are those of float32 division and rounding, to the bit; what is attended to are their
    values.
    """
    check(library, case)


@pytest.mark.parametrize("cache_scales", [None, (0.013, 0.007)])
def test_where_a_prompt_is_cut_changes_no_bit(
    library: Library, cache_scales: tuple[float, float] | None
) -> None:
    """Twelve rows at once, one by one, or in pieces: the same caches, and the same results.

    (To the bit where the keys are not split and divided into equal tiles, as here; else to the
    order of a sum.)
    """
    case = Case((70,), 12, 128, 2, 2, processors=1, cache_scales=cache_scales)
    given = inputs(case)
    whole = _run(library, case, given)
    for pieces in ([1] * 12, [5, 7], [11, 1], [2, 3, 7]):
        done, caches, out = 0, {name: given[name] for name in ("key_cache", "value_cache")}, []
        for rows in pieces:
            part = {
                name: given[name][:, done : done + rows]
                for name in ("q", "k", "v", "positions")
            }
            got = _run(library, replace(case, rows=rows), {**part, **caches})
            caches, done = {name: got[name] for name in caches}, done + rows
            out.append(got["out"])
        np.testing.assert_array_equal(
            _bits(np.concatenate(out, axis=1)), _bits(whole["out"]), err_msg=str(pieces)
        )
        for name, array in caches.items():
            np.testing.assert_array_equal(
                _bits(array), _bits(whole[name]), err_msg=f"{name}, {pieces}"
            )


def test_what_exceeds_an_fp8_cache_saturates(library: Library) -> None:
    """Ties go to the even code, numbers beyond 448 scales become 448 of them, and the step's own
    keys are such too.
    """
    case = Case((0,), 1, 64, 1, 1, cache_scales=(0.5, 0.5))
    given = inputs(case)
    numbers = [
        0,
        -0.0,
        448,
        449,
        464,
        480,
        1e30,
        np.inf,
        2**-9,
        2**-10,
        3 * 2**-10,
        2**-11,
        17,
        19,
        1.0625,
        1.1875,
    ]
    expected = [0, -0.0, 448, 448, 448, 448, 448, 448, 2**-9, 0, 2**-8, 0, 16, 20, 1, 1.25]
    given["v"][0, 0, 0, :32] = np.array([*numbers, *(-np.array(numbers))]) / 2
    got = _run(library, case, given)
    worth = np.array([*expected, *(-np.array(expected))], np.float32)
    np.testing.assert_array_equal(
        _bits(got["value_cache"][0, 0, 0, :32].astype(np.float32)), _bits(worth)
    )
    np.testing.assert_array_equal(got["out"][0, 0, 0, :32].astype(np.float32), worth / 2)


@pytest.mark.parametrize("processors", [1, H200])
def test_one_key_far_above_the_rest(library: Library, processors: int) -> None:
    """A weight of 1 in one place, nothing elsewhere: the result is that key's value, exactly,
    wherever it stands.
    """
    case = Case((130,), 8, 128, 1, 4, processors=processors)
    given = inputs(case)
    for position in (0, 1, 15, 16, 63, 64, 127, 129):
        given["key_cache"][0, 0, :130] = -1
        given["key_cache"][0, 0, position] = 1
        given["q"][:], given["k"][:] = 16, -1
        out = _run(library, case, given)["out"]
        expected = np.broadcast_to(given["value_cache"][0, 0, position], out.shape)
        np.testing.assert_array_equal(_bits(out), _bits(np.ascontiguousarray(expected)))


def test_a_sink_takes_weight_and_gives_nothing(library: Library) -> None:
    """One key and a sink of the same logit: half of the value. Far above it: nothing. Far below:
    all of it.
    """
    case = Case((0,), 1, 64, 1, 3, sinks=True)
    given = inputs(case)
    given["q"][:] = 0
    given["sinks"][:] = [0, 1000, -1000]
    out = _run(library, case, given)["out"][0, 0].astype(np.float32)
    value = given["v"][0, 0, 0].astype(np.float32)
    np.testing.assert_array_equal(out, [value / 2, value * 0, value])


@pytest.mark.parametrize("context_rows", [0, 4])
def test_positions_behind_the_cache_touch_nothing(library: Library, context_rows: int) -> None:
    """Slot 0's block begins two rows before the cache ends, as an idle slot's may: those are
    written, and no others.
    """
    case = Case(
        (10, 3),
        5,
        processors=4,
        context_rows=context_rows,
        committed=(1, 2) if context_rows else (),
    )
    given = inputs(case)
    start = given["key_cache"].shape[2] - 2
    given["positions"][0] += start - given["positions"][0, context_rows]
    got = _run(library, case, given)
    for cache, rows in (("key_cache", "k"), ("value_cache", "v")):
        block = given[rows][0, context_rows:].transpose(1, 0, 2)
        np.testing.assert_array_equal(_bits(got[cache][0, :, start:]), _bits(block[:, :2]))
        np.testing.assert_array_equal(
            _bits(got[cache][0, :, : start - 1]), _bits(given[cache][0, :, : start - 1])
        )
        np.testing.assert_array_equal(
            _bits(got[cache][1]), _bits(written_caches(case, given)[cache][1])
        )


@pytest.mark.parametrize("shift", [-(2**40), -6, 2**31, 2**40])
@pytest.mark.parametrize("context_rows", [0, 4])
def test_senseless_positions_stay_inside(
    library: Library, context_rows: int, shift: int
) -> None:
    """Whatever slot 0's positions say, slot 1 gets what it is due, and nothing around the tensors
    is touched.
    """
    case = Case(
        (10, 3),
        5,
        processors=4,
        context_rows=context_rows,
        committed=(1, 2) if context_rows else (),
    )
    given = inputs(case)
    expected = _run(library, case, given)
    for moved in (slice(None), slice(context_rows, None)):
        wrong = {**given, "positions": given["positions"].copy()}
        wrong["positions"][0, moved] += shift
        got = _run(library, case, wrong)
        for name, array in expected.items():
            np.testing.assert_array_equal(_bits(got[name][1]), _bits(array[1]), err_msg=name)
