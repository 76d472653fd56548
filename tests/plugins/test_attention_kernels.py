"""The attention kernels against float64 over shapes that are odd on purpose: emulated, and on a GPU
if there is one.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.plugins.attention_reference import (
    Case,
    assert_as_good_as_eager,
    inputs,
    reordered,
    written_caches,
)
from tests.plugins.library import HEAD_DIMS, Library

H200 = 132  # multiprocessors: enough for every split that a plan allows


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
    got = _run(library, case, given)
    for name, expected in written_caches(case, given).items():
        np.testing.assert_array_equal(_bits(got[name]), _bits(expected), err_msg=f"{case}: {name}")
    assert_as_good_as_eager(case, given, got["out"], case.head_dim**-0.5)


def _heads() -> list[Case]:
    """Return every head_dim with every number of key heads and group; rows and lengths go round."""
    rows, past = (1, 2, 5, 8, 9, 10, 15, 16, 17, 31, 40), ((0,), (1, 15), (16, 0, 17), (33, 2))
    cases = []
    for head_dim in HEAD_DIMS:
        for kv_heads in (1, 2, 3):
            for group in (1, 4, 7, 8):
                n = len(cases)
                case = Case(past[n % 4], rows[n % 11], head_dim, kv_heads, group, sinks=n % 3 == 0)
                cases.append(replace(case, processors=(1, H200)[n % 2]))
    return reordered(cases)


def _windows() -> list[Case]:
    """Windows shorter and longer than a tile of keys, at lengths around a tile's edge."""
    cases = []
    for window in (1, 3, 16, 64, 100):
        for n, past in enumerate([(0, 15), (14, 16), (63, 64, 65), (200, 1)]):
            case = Case(
                past, (1, 8, 17)[n % 3], (64, 128)[n % 2], group=(4, 7)[n % 2], window=window
            )
            cases.append(replace(case, sinks=n % 2 == 0, processors=(1, 4, H200)[n % 3]))
    return reordered(cases)


def _drafts() -> list[Case]:
    """Context rows kept and rejected; blocks that see all of themselves, their past, or a
    window.
    """
    cases = []
    for causal in (False, True):
        for window in (0, 1, 3, 40):
            for n, (context_rows, committed) in enumerate(
                [(1, (1,)), (8, (1, 8, 5)), (16, (9, 2)), (40, (40, 1))]
            ):
                past = (0, 30, 63)[: len(committed)]
                case = Case(
                    past, (8, 10, 16, 1)[n], HEAD_DIMS[n], kv_heads=1 + n % 3, group=(8, 7, 4, 1)[n]
                )
                case = replace(
                    case,
                    context_rows=context_rows,
                    committed=committed,
                    causal=causal,
                    window=window,
                )
                cases.append(replace(case, sinks=n % 2 == 0, processors=(1, H200)[n % 2]))
    return reordered(cases)


def _long() -> list[Case]:
    """4095 keys and one more, beside slots that have hardly any."""
    cases = [
        Case((4095 - 8, 0, 17), 8, 128, 2, 4, processors=16),
        Case((4095 - 16, 1), 16, 64, 1, 8, processors=H200, sinks=True),
        Case((4095 - 8,), 8, 64, 1, 8, window=128, processors=H200, sinks=True),
        Case((4096 - 1, 15), 1, 96, 1, 7),
        Case((4095 - 10, 16), 10, 256, 1, 4, processors=H200),
        Case(
            (4095 - 9, 7),
            8,
            128,
            1,
            8,
            context_rows=8,
            committed=(1, 8),
            causal=False,
            processors=H200,
        ),
    ]
    return reordered(cases)


def _splits() -> list[Case]:
    """Far more splits than tiles of keys: most find none, and what they leave in the workspace must
    not count.
    """
    cases = [
        Case((0, 3), rows, head_dim, 2, 4, spare=4000, processors=processors, sinks=head_dim == 96)
        for rows in (1, 9)
        for head_dim in HEAD_DIMS
        for processors in (4, H200)
    ]
    return reordered([*cases, Case((90,), 8, window=20, spare=4000, processors=H200, sinks=True)])


def _edges() -> list[Case]:
    """Blocks that begin around the end of a tile of keys, where the check of what a row sees may be
    left out.
    """
    cases = [
        Case((tile - 2, tile - 1, tile), rows, head_dim, 1, 4, processors=processors)
        for tile in (32, 64)
        for rows in (2, 8, 33)
        for head_dim in HEAD_DIMS
        for processors in (1, H200)
    ]
    return reordered(cases)


def _prefill() -> list[Case]:
    """Return as many rows as a chunk of a prompt, several tiles of them."""
    cases = [
        Case((0,), 100 + 33 * n, dim, 2, (4, 7, 1, 8)[n], sinks=n == 1)
        for n, dim in enumerate(HEAD_DIMS)
    ]
    cases += [
        Case((77, 0), 128, 128, 1, 4, processors=H200),
        Case((130,), 200, 64, 1, 8, window=50, sinks=True),
        Case((10,), 16, 128, 2, 4, context_rows=150, committed=(150,), causal=False),
        Case(
            (10, 0),
            8,
            64,
            2,
            7,
            context_rows=100,
            committed=(100, 31),
            causal=False,
            window=64,
            processors=H200,
        ),
    ]
    return reordered(cases)


def _drawn(count: int) -> list[Case]:
    """Shapes drawn at random, always the same ones."""
    rng = np.random.default_rng(3)
    cases = []
    for _ in range(count):
        batch = int(rng.integers(1, 4))
        case = Case(
            past=tuple(map(int, rng.choice([0, 1, 7, 15, 16, 17, 31, 47, 64, 100, 191], batch))),
            rows=int(rng.integers(1, 41)),
            head_dim=int(rng.choice(HEAD_DIMS)),
            kv_heads=int(rng.integers(1, 4)),
            group=int(rng.integers(1, 9)),
            window=int(rng.choice([0, 0, 1, 5, 33, 128])),
            sinks=bool(rng.integers(2)),
            spare=int(rng.choice([0, 1, 5, 600])),
            processors=int(rng.choice([1, 3, 20, H200])),
        )
        if rng.integers(2):
            context_rows = int(rng.integers(1, 33))
            committed = tuple(map(int, rng.integers(1, context_rows + 1, batch)))
            case = replace(
                case, context_rows=context_rows, committed=committed, causal=bool(rng.integers(2))
            )
        cases.append(case)
    return reordered(cases)


def _fp8() -> list[Case]:
    """Return a share of every kind of case above, with FP8 caches of scales that are powers of two,
    are not, or saturate.
    """
    scales = (1.0, 1.0), (2.0**-7, 2.0**-6), (0.0113, 0.0071), (0.004, 0.003)
    cases = [
        *_heads()[::2],
        *_windows()[::2],
        *_long()[:5],
        *_splits()[::3],
        *_edges()[::3],
        *_prefill()[:6:2],
    ]
    cases += [case for case in _drawn(60) if not case.draft][::2]
    return [replace(case, cache_scales=scales[n % 4]) for n, case in enumerate(cases)]


@pytest.mark.parametrize("case", _heads(), ids=str)
def test_heads(library: Library, case: Case) -> None:
    check(library, case)


@pytest.mark.parametrize("case", _windows(), ids=str)
def test_windows(library: Library, case: Case) -> None:
    check(library, case)


@pytest.mark.parametrize("case", _drafts(), ids=str)
def test_drafts(library: Library, case: Case) -> None:
    check(library, case)


@pytest.mark.parametrize("case", _long(), ids=str)
def test_long_contexts(library: Library, case: Case) -> None:
    check(library, case)


@pytest.mark.parametrize("case", _splits(), ids=str)
def test_more_splits_than_keys(library: Library, case: Case) -> None:
    check(library, case)


@pytest.mark.parametrize("case", _edges(), ids=str)
def test_edges_of_tiles(library: Library, case: Case) -> None:
    check(library, case)


@pytest.mark.parametrize("case", _prefill(), ids=str)
def test_prefill(library: Library, case: Case) -> None:
    check(library, case)


@pytest.mark.parametrize("case", _drawn(60), ids=lambda case: f"{case}-spare{case.spare}")
def test_drawn_shapes(library: Library, case: Case) -> None:
    check(library, case)


@pytest.mark.parametrize(
    "case",
    [
        Case((33, 70), 8, 128, 2, 4, processors=8),
        Case((5, 90), 17, 64, 1, 8, sinks=True),
        Case((20,), 40, 96, 1, 7, window=9, processors=H200),
        Case((64, 3), 10, 256, 1, 4, context_rows=8, committed=(3, 8), causal=False, processors=4),
        Case((40, 100), 12, 96, 2, 4, processors=8, cache_scales=(0.01, 0.02)),
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


@pytest.mark.parametrize("case", _fp8(), ids=str)
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
                name: given[name][:, done : done + rows] for name in ("q", "k", "v", "positions")
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
def test_senseless_positions_stay_inside(library: Library, context_rows: int, shift: int) -> None:
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
