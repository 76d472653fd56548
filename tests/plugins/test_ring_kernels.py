"""Ring caches in the attention kernels: bit for bit what caches that hold everything give, in the
smallest ring too.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.plugins.attention_reference import (
    Case,
    inputs,
    reordered,
    written_caches,
)
from tests.plugins.library import HEAD_DIMS, Library
from trtllm_dflash.engine_dir.ring_cache import rows_needed

pytestmark = pytest.mark.slow

CACHES = ("key_cache", "value_cache")


def smallest(case: Case) -> int:
    return rows_needed(case.window, case.context_rows + case.rows)


def in_rings(case: Case, given: dict[str, np.ndarray], rows: int) -> dict[str, np.ndarray]:
    """Return the same inputs with the caches as rings: the positions that the step may see, and NaN
    in every other row.
    """
    made = dict(given)
    for name in CACHES:
        cache = given[name]
        made[name] = np.full((*cache.shape[:2], rows, cache.shape[3]), np.nan, cache.dtype)
        for slot, past in enumerate(case.past):
            for position in range(max(past - case.window + 1, 0), past):
                made[name][slot, :, position % rows] = cache[slot, :, position]
    return made


def written_rings(
    case: Case, given: dict[str, np.ndarray], rings: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return the rings after the launch: the kept context rows and the block's where they belong,
    all else as it was.
    """
    after = {name: rings[name].copy() for name in CACHES}
    for name, cache in written_caches(case, given).items():
        for slot, (past, start) in enumerate(zip(case.past, case.starts, strict=True)):
            for position in range(past, start + case.rows):
                after[name][slot, :, position % after[name].shape[2]] = cache[slot, :, position]
    return after


def _run(
    library: Library, case: Case, given: dict[str, np.ndarray], *, ring: bool
) -> dict[str, np.ndarray]:
    library.order(case.order)
    kind, scale = "draft" if case.draft else "verify", case.head_dim**-0.5
    return library.attention(
        kind,
        given,
        scale=scale,
        window=case.window,
        causal=case.causal,
        ring=ring,
        processors=case.processors,
        cache_scales=case.cache_scales,
    )


def _splits(library: Library, case: Case, cache_len: int) -> int:
    heads = case.kv_heads * case.group, case.kv_heads, case.head_dim
    return library.attention_plan(
        len(case.past), case.rows, *heads, cache_len, case.window, case.processors
    ).split_limit


def _bits(array: np.ndarray) -> np.ndarray:
    return array.view(f"u{array.itemsize}")


def check(library: Library, case: Case, rows: int) -> None:
    """Check that the rings are exact and the result is that over whole caches, to the bit."""
    given = inputs(case)
    rings = in_rings(case, given, rows)
    got = _run(library, case, rings, ring=True)
    for name, expected in written_rings(case, given, rings).items():
        np.testing.assert_array_equal(
            _bits(got[name]), _bits(expected), err_msg=f"{case}: {name}"
        )
    whole = _run(library, case, given, ring=False)
    np.testing.assert_array_equal(_bits(got["out"]), _bits(whole["out"]), err_msg=str(case))


def _cases() -> list[Case]:
    """Return every head_dim; windows around a tile of keys; slots that are short, at a ring's edge,
    and many times round.
    """
    cases = []
    for head_dim in HEAD_DIMS:
        for n, window in enumerate((1, 5, 64, 100)):
            past = [(0, 700), (window, 333, 3), (1021, window + 7), (2 * window + 16, 90)][n]
            rows = (8, 1, 17, 33)[n]
            case = Case(
                past, rows, head_dim, kv_heads=1 + n % 2, group=(4, 7, 8, 1)[n], window=window
            )
            cases.append(replace(case, sinks=n % 2 == 0))
            context_rows = (5, 16, 1, 40)[n]
            committed = tuple((1, context_rows, (context_rows + 1) // 2)[: len(past)])
            cases.append(
                replace(case, context_rows=context_rows, committed=committed, causal=n % 2 == 1)
            )
    return reordered(cases)


@pytest.mark.parametrize("case", _cases(), ids=str)
def test_the_same_bits_as_a_cache_of_all_positions(library: Library, case: Case) -> None:
    """In the smallest ring and in one that a position is not a multiple of."""
    for spare in (0, 13):
        check(library, case, smallest(case) + spare)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_fp8_rings(library: Library, head_dim: int) -> None:
    case = Case((500, 0, 41), 9, head_dim, 2, 4, window=40, cache_scales=(0.0113, 0.0071))
    for spare in (0, 13):
        check(library, case, smallest(case) + spare)


SPLIT = [  # their windows are wide, so that there are tiles of keys for several splits
    Case((1500, 3), 8, 64, 2, 4, window=500, processors=8),
    Case((900,), 10, 128, 1, 8, window=300, processors=2, sinks=True),
    Case(
        (1200, 40),
        8,
        256,
        1,
        4,
        window=300,
        context_rows=8,
        committed=(3, 8),
        causal=False,
        processors=6,
    ),
]


@pytest.mark.parametrize("case", SPLIT, ids=str)
def test_split_keys(library: Library, case: Case) -> None:
    given, rows = inputs(case), smallest(case)
    splits = [_splits(library, case, length) for length in (rows, given["key_cache"].shape[2])]
    assert splits[0] == splits[1] > 1
    check(library, case, rows)


@pytest.mark.parametrize("case", [_cases()[4], _cases()[13], SPLIT[0], SPLIT[2]], ids=str)
def test_the_same_bits_in_any_order(library: Library, case: Case) -> None:
    """What a CTA writes takes the place of nothing that another still has to read."""
    rings = in_rings(case, inputs(case), smallest(case))
    first = _run(library, case, rings, ring=True)
    for order in ("forward", "reverse", "random"):
        again = _run(library, replace(case, order=order), rings, ring=True)
        for name, expected in first.items():
            np.testing.assert_array_equal(
                _bits(again[name]), _bits(expected), err_msg=f"{name}, {order}"
            )


@pytest.mark.parametrize("pieces", [[60], [7, 20, 33], [1] * 60])
@pytest.mark.parametrize("cache_scales", [None, (0.013, 0.007)])
def test_a_long_sequence_step_by_step(
    library: Library, cache_scales: tuple[float, float] | None, pieces: list[int]
) -> None:
    """From an empty ring through many rounds; each step also writes two rows that are then
    rejected.
    """
    window, head_dim, rows = 12, 64, rows_needed(12, 62)
    whole = Case((0,), 60, head_dim, 1, 2, window=window, cache_scales=cache_scales)
    given, scale = inputs(whole), head_dim**-0.5
    expected = _run(library, whole, given, ring=False)["out"]
    caches = {
        name: np.full((1, 1, rows, head_dim), np.nan, given[name].dtype) for name in CACHES
    }
    done = 0
    for count in pieces:
        step = slice(done, done + count)
        rejected = {name: np.full_like(given[name][:, :2], 99) for name in ("q", "k", "v")}
        part = {
            name: np.concatenate([given[name][:, step], rejected[name]], axis=1)
            for name in ("q", "k", "v")
        }
        part["positions"] = np.arange(done, done + count + 2)[None]
        got = library.attention(
            "verify",
            {**part, **caches},
            scale=scale,
            window=window,
            ring=True,
            processors=1,
            cache_scales=cache_scales,
        )
        caches, done = {name: got[name] for name in CACHES}, done + count
        assert_close(got["out"][:, :count], expected[:, step])


def assert_close(got: np.ndarray, expected: np.ndarray) -> None:
    """Equal but for a last bit of bfloat16: a row's keys begin in another tile when its step is
    another.
    """
    got, expected = got.astype(np.float32), expected.astype(np.float32)
    np.testing.assert_allclose(
        got, expected, rtol=2.0**-7, atol=2.0**-7 * np.abs(expected).max()
    )


@pytest.mark.parametrize("shift", [-(2**40), -6, 2**29, 2**31, 2**40])
@pytest.mark.parametrize("context_rows", [0, 4])
def test_senseless_positions_stay_inside(
    library: Library, context_rows: int, shift: int
) -> None:
    """Whatever slot 0's positions say, slot 1 gets what it is due, and nothing around the tensors
    is touched.
    """
    case = Case((10, 30), 5, processors=4, window=9, context_rows=context_rows)
    case = replace(case, committed=(1, 2) if context_rows else ())
    rings = in_rings(case, inputs(case), smallest(case))
    expected = _run(library, case, rings, ring=True)
    for moved in (slice(None), slice(context_rows, None)):
        wrong = {**rings, "positions": rings["positions"].copy()}
        wrong["positions"][0, moved] += shift
        got = _run(library, case, wrong, ring=True)
        for name, array in expected.items():
            np.testing.assert_array_equal(_bits(got[name][1]), _bits(array[1]), err_msg=name)
