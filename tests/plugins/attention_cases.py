"""Cases of attention over shapes that are odd on purpose, each list for one edge of the kernels."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np

from tests.plugins.attention_reference import Case, reordered
from tests.plugins.library import HEAD_DIMS

H200 = 132  # multiprocessors: enough for every split that a plan allows


def heads_cases() -> list[Case]:
    """Return every head_dim with every number of key heads and group; rows and lengths go round."""
    rows, past = (1, 2, 5, 8, 9, 10, 15, 16, 17, 31, 40), ((0,), (1, 15), (16, 0, 17), (33, 2))
    cases = []
    for head_dim in HEAD_DIMS:
        for kv_heads in (1, 2, 3):
            for group in (1, 4, 7, 8):
                n = len(cases)
                case = Case(
                    past[n % 4], rows[n % 11], head_dim, kv_heads, group, sinks=n % 3 == 0
                )
                cases.append(replace(case, processors=(1, H200)[n % 2]))
    return reordered(cases)


def windows_cases() -> list[Case]:
    """Windows shorter and longer than a tile of keys, at lengths around a tile's edge."""
    cases = []
    for window in (1, 3, 16, 64, 100):
        for n, past in enumerate([(0, 15), (14, 16), (63, 64, 65), (200, 1)]):
            case = Case(
                past, (1, 8, 17)[n % 3], (64, 128)[n % 2], group=(4, 7)[n % 2], window=window
            )
            cases.append(replace(case, sinks=n % 2 == 0, processors=(1, 4, H200)[n % 3]))
    return reordered(cases)


def drafts_cases() -> list[Case]:
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
                    past,
                    (8, 10, 16, 1)[n],
                    HEAD_DIMS[n],
                    kv_heads=1 + n % 3,
                    group=(8, 7, 4, 1)[n],
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


def long_cases() -> list[Case]:
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


def splits_cases() -> list[Case]:
    """Far more splits than tiles of keys: most find none, and what they leave in the workspace must
    not count.
    """
    cases = []
    for rows, head_dim, processors in product((1, 9), HEAD_DIMS, (4, H200)):
        sizes = {"spare": 4000, "processors": processors, "sinks": head_dim == 96}
        cases.append(Case((0, 3), rows, head_dim, 2, 4, **sizes))
    return reordered(
        [*cases, Case((90,), 8, window=20, spare=4000, processors=H200, sinks=True)]
    )


def mixed_cases() -> list[Case]:
    """Return long sequences among short ones, on GPUs that take all items at once or in rounds."""
    cases = []
    for head_dim, processors in product(HEAD_DIMS, (1, 3, H200)):
        n = len(cases)
        case = Case((1400, 3, 600, 260), (8, 10, 1)[n % 3], head_dim, 2, (4, 8, 1)[n % 3])
        cases.append(replace(case, sinks=n % 2 == 0, processors=processors))
    cases += [
        Case((900, 0, 2000), 8, 64, 1, 8, window=700, processors=5, sinks=True),
        Case((30, 1500), 100, 128, 1, 4, processors=20),
        Case(
            (700, 1200),
            16,
            96,
            2,
            4,
            context_rows=16,
            committed=(3, 16),
            causal=False,
            processors=H200,
        ),
    ]
    return reordered(cases)


def edges_cases() -> list[Case]:
    """Blocks that begin around the end of a tile of keys, where the check of what a row sees may be
    left out.
    """
    cases = []
    for tile, rows, head_dim, processors in product((32, 64), (2, 8, 33), HEAD_DIMS, (1, H200)):
        starts = (tile - 2, tile - 1, tile)
        cases.append(Case(starts, rows, head_dim, 1, 4, processors=processors))
    return reordered(cases)


def prefill_cases() -> list[Case]:
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


def drawn_cases(count: int) -> list[Case]:
    """Shapes drawn at random, always the same ones."""
    rng = np.random.default_rng(3)
    cases = []
    for _ in range(count):
        batch = int(rng.integers(1, 4))
        case = Case(
            past=tuple(
                map(int, rng.choice([0, 1, 7, 15, 16, 17, 31, 47, 64, 100, 191], batch))
            ),
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
                case,
                context_rows=context_rows,
                committed=committed,
                causal=bool(rng.integers(2)),
            )
        cases.append(case)
    return reordered(cases)


def fp8_cases() -> list[Case]:
    """Return a share of every kind of case above, with FP8 caches of scales that are powers of two,
    are not, or saturate.
    """
    scales = (1.0, 1.0), (2.0**-7, 2.0**-6), (0.0113, 0.0071), (0.004, 0.003)
    cases = [
        *heads_cases()[::2],
        *windows_cases()[::2],
        *long_cases()[:5],
        *splits_cases()[::3],
        *mixed_cases()[:14:3],
        *edges_cases()[::3],
        *prefill_cases()[:6:2],
    ]
    cases += [case for case in drawn_cases(60) if not case.draft][::2]
    return [replace(case, cache_scales=scales[n % 4]) for n, case in enumerate(cases)]
