"""Attention's work among the CTAs of a launch: all of it once, in shares that are even."""

from __future__ import annotations

import ctypes
import importlib
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.plugins.library import GXX, GXX_WARNINGS, INCLUDES, PLUGINS, SHARED_BYTES, run
from trtllm_dflash.trt_plugins.attention_plans import (
    AttentionPlan,
    attention_plan,
    attention_splits,
)
from trtllm_dflash.trt_plugins.params import (
    AttentionParams,
)

pytestmark = pytest.mark.slow

Item = tuple[int, int, int, int, int]  # slot, key head, row tile, split, splits
Deal = Callable[[AttentionPlan, Sequence[int], int], list[list[Item]]]
LONG = 32768


@pytest.fixture(scope="module")
def dealer(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """attention_deal.cpp beside this file, over the emulator."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++, which compiles the kernels for the emulator")
    path = tmp_path_factory.mktemp("deal") / "libdeal.so"
    emulator = PLUGINS / "emulator"
    sources = [
        Path(__file__).with_name("attention_deal.cpp"),
        emulator / "emulator.cpp",
        emulator / "instructions.cpp",
    ]
    run([*GXX, *GXX_WARNINGS, *INCLUDES, "-shared", *map(str, sources), "-o", str(path)])
    return ctypes.CDLL(str(path))


@pytest.fixture
def deal(dealer: ctypes.CDLL) -> Deal:
    """`deal(plan, lengths, kv_heads)`: the items of each CTA; rows are one and one head a group."""

    def call(plan: AttentionPlan, lengths: Sequence[int], kv_heads: int) -> list[list[Item]]:
        rows = plan.row_tiles * plan.tile.rows
        positions = np.array([[length - rows] * rows for length in lengths], np.int64)
        given = AttentionParams(
            positions=positions.ctypes.data,
            batch=len(lengths),
            rows=rows,
            q_heads=kv_heads,
            kv_heads=kv_heads,
            cache_len=max(lengths) + 1,
            tile_rows=plan.tile.rows,
            tile_keys=plan.tile.keys,
            row_tiles=plan.row_tiles,
            group=1,
            packed_rows=rows,
            even_splits=plan.even_splits,
            split_limit=plan.split_limit,
            causal=1,
        )
        most = 2 + kv_heads * plan.row_tiles * plan.split_limit * len(lengths)
        items = np.full((plan.ctas, most, 5), -7, np.int32)
        dealer.deal(
            ctypes.byref(given),
            plan.ctas,
            most,
            items.ctypes.data_as(ctypes.c_void_p),
        )
        dealt = []
        for of_cta in items:
            count = int((of_cta[:, 0] >= 0).argmin())
            dealt.append([tuple(map(int, item)) for item in of_cta[:count]])
        return dealt

    return call


@pytest.fixture
def twin(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(PLUGINS / "bench"))
    return importlib.import_module("deal")


def _plan(batch: int, kv_heads: int, processors: int, **sizes: Any) -> AttentionPlan:
    given = {"rows": 16, "q_heads": kv_heads, "kv_heads": kv_heads, "head_dim": 128}
    given |= {"cache_len": LONG + 64, "window": 0, "processor_shared_bytes": SHARED_BYTES}
    return attention_plan(batch=batch, processors=processors, **{**given, **sizes})


def _lengths() -> list[tuple[int, int, list[int]]]:
    """Return multiprocessors, key heads and lengths: equal ones, one long one, and random ones."""
    rng = np.random.default_rng(2)
    cases = [(132, 8, [LONG] + [1040] * 31), (148, 4, [LONG] + [1040] * 15), (7, 1, [16])]
    cases += [(132, 8, [8208] * batch) for batch in (1, 8, 40)]
    for _ in range(40):
        batch = int(rng.integers(1, 24))
        lengths = np.exp(rng.uniform(np.log(16), np.log(LONG), batch)).astype(int)
        processors = int(rng.choice([1, 3, 20, 48, 132]))
        cases.append((processors, int(rng.integers(1, 9)), [int(one) for one in lengths]))
    return cases


@pytest.mark.parametrize(
    "case", _lengths(), ids=lambda case: f"{case[0]}-{case[1]}-{len(case[2])}"
)
def test_all_work_is_dealt_once(
    deal: Deal, twin: ModuleType, case: tuple[int, int, list[int]]
) -> None:
    processors, kv_heads, lengths = case
    plan = _plan(len(lengths), kv_heads, processors)
    dealt = deal(plan, lengths, kv_heads)
    wanted: Counter[Item] = Counter()
    for slot, length in enumerate(lengths):
        tiles = -(-length // plan.tile.keys)
        splits = attention_splits(tiles, plan.even_splits, plan.split_limit)
        for head in range(kv_heads):
            wanted.update((slot, head, 0, split, splits) for split in range(splits))
    assert Counter(item for of_cta in dealt for item in of_cta) == wanted
    said = twin.items_of_ctas(plan, lengths, kv_heads)
    assert [[item[0] for item in of_cta] for of_cta in dealt] == [
        [slot for slot, _ in of_cta] for of_cta in said
    ]


def test_row_tiles_of_a_prompt_are_dealt_once(deal: Deal) -> None:
    plan = _plan(2, 2, 5, rows=700, cache_len=4096)
    assert plan.row_tiles > 4
    dealt = deal(plan, [4000, 900], 2)
    places = [item[:4] for of_cta in dealt for item in of_cta]
    assert len(places) == len(set(places))
    found = {place[:3] for place in places}
    assert found == set(product(range(2), range(2), range(plan.row_tiles)))


@pytest.mark.parametrize(
    ("processors", "shared_bytes"),
    [(132, 228 << 10), (148, 228 << 10), (170, 100 << 10), (48, 100 << 10)],
)
@pytest.mark.parametrize(
    ("kv_heads", "head_dim", "rows"), [(8, 128, 64), (8, 64, 80), (4, 128, 128)]
)
@pytest.mark.parametrize("batch", [8, 16, 32, 40])
def test_one_long_sequence_does_not_keep_others_waiting(
    twin: ModuleType,
    processors: int,
    shared_bytes: int,
    kv_heads: int,
    head_dim: int,
    rows: int,
    batch: int,
) -> None:
    """32k among 1k: the CTA with most keys has less than 1.5 times an even share of a place."""
    sizes = {"head_dim": head_dim, "rows": rows, "processor_shared_bytes": shared_bytes}
    plan = _plan(batch, kv_heads, processors, **sizes)
    lengths = [LONG + rows] + [1024 + rows] * (batch - 1)
    dealt = twin.items_of_ctas(plan, lengths, kv_heads)
    tiles = [sum(part for _, part in of_cta) for of_cta in dealt]
    fit = min(plan.tile.ctas, max(1, shared_bytes // (plan.shared_bytes + 1024)))
    assert max(tiles) < 1.5 * sum(tiles) / (processors * fit)
