"""The Python twin of the kernels' parameters and plans: every number and every offset as in C++."""

from __future__ import annotations

import json
import shutil
import subprocess
from ctypes import Structure
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trtllm_dflash.models.dflash2 import MAX_CANDIDATES
from trtllm_dflash.models.drafter import MAX_BLOCK_SIZE
from trtllm_dflash.models.moe import MAX_EXPERTS
from trtllm_dflash.trt_plugins import params
from trtllm_dflash.trt_plugins.attention_plans import attention_plan, attention_workspace
from trtllm_dflash.trt_plugins.params import (
    AcceptParams,
    AttentionParams,
    BlockLinearParams,
    GatedDeltaParams,
    MoeParams,
    SelectParams,
    accept_plan,
    block_linear_plan,
    gated_delta_plan,
    moe_plan,
    select_plan,
)

KERNELS = Path(__file__).parents[2] / "plugins" / "kernels"
STRUCTURES = {
    "AttentionParams": AttentionParams,
    "AcceptParams": AcceptParams,
    "MoeParams": MoeParams,
    "GatedDeltaParams": GatedDeltaParams,
    "BlockLinearParams": BlockLinearParams,
    "SelectParams": SelectParams,
}
CONSTANTS = {
    "kAttentionThreads": params.ATTENTION_THREADS,
    "kMergeThreads": params.MERGE_THREADS,
    "kScanThreads": params.SCAN_THREADS,
    "kChooseThreads": params.CHOOSE_THREADS,
    "kFinishThreads": params.FINISH_THREADS,
    "kMoeThreads": params.MOE_THREADS,
    "kRouteThreads": params.ROUTE_THREADS,
    "kListThreads": params.LIST_THREADS,
    "kSumThreads": params.SUM_THREADS,
    "kMaxExperts": params.MAX_EXPERTS,
    "kMaxTopKExperts": params.MAX_TOP_K_EXPERTS,
    "kLinearSharedBytes": params.LINEAR_SHARED_BYTES,
    "kDeltaRowThreads": params.DELTA_ROW_THREADS,
    "kDeltaRuleThreads": params.DELTA_RULE_THREADS,
    "kDeltaHistory": params.DELTA_HISTORY,
    "kDeltaMaxSharedBytes": params.DELTA_MAX_SHARED_BYTES,
    "kSelectThreads": params.SELECT_THREADS,
    "kWalkThreads": params.WALK_THREADS,
    "kSelectMaxTopK": params.MAX_CANDIDATES,
}
ATTENTION_SIZES = (
    "batch",
    "rows",
    "q_heads",
    "kv_heads",
    "head_dim",
    "cache_len",
    "window",
    "processors",
    "processor_shared_bytes",
)
ACCEPT_SIZES = ("batch", "rows", "vocab")
DELTA_SIZES = ("batch", "rows", "window_rows", "key_heads", "value_heads")
SELECT_SIZES = ("batch", "rows", "vocab", "top_k")
MOE_SIZES = ("tokens", "hidden", "inner_size", "experts", "top_k", "weight_format")

# Reads sizes from stdin, a plan a line; prints a line of numbers for each.
PROGRAM = r"""
#include <cstddef>
#include <cstdio>
#include "accept_params.h"
#include "attention_params.h"
#include "block_linear_params.h"
#include "gated_delta_params.h"
#include "moe_params.h"
#include "select_params.h"
using namespace dflash;
int main() {
  %(facts)s
  int a, b, c, d, e, f, g, h, i;
  char kind;
  while (scanf(" %%c", &kind) == 1) {
    if (kind == 't') {
      scanf("%%d %%d %%d %%d %%d %%d %%d %%d %%d", &a, &b, &c, &d, &e, &f, &g, &h, &i);
      const AttentionPlan p = attention_plan({a, b, c, d, e, f, g, h, i});
      printf("%%d %%d %%d %%d ", p.tile.rows, p.tile.warps, p.tile.keys, p.tile.ctas);
      printf("%%d %%d %%d %%d ", p.row_tiles, p.ctas, p.even_splits, p.split_limit);
      printf("%%d %%lld\n", p.shared_bytes, p.workspace_bytes);
    } else if (kind == 'm') {
      scanf("%%d %%d %%d %%d %%d %%d", &a, &b, &c, &d, &e, &f);
      const MoePlan p = moe_plan(a, b, c, d, e, f);
      const MoeWorkspace& w = p.workspace;
      printf("%%d %%d %%d %%d ", p.tile.tokens, p.tile.row_warps, p.groups, p.gate_up_blocks);
      printf("%%d %%d %%d ", p.down_blocks, p.sum_blocks, p.shared_bytes);
      printf("%%lld %%lld %%lld %%lld %%lld ", w.shares, w.chosen, w.order, w.rows, w.groups);
      printf("%%lld %%lld %%lld %%lld\n", w.ordered_x, w.inner, w.partial, w.bytes);
    } else if (kind == 'l') {
      scanf("%%d %%d", &a, &b);
      const BlockLinearPlan p = block_linear_plan(a, b);
      printf("%%d %%d %%d %%d\n", p.tile.tokens, p.tile.row_warps, p.token_tiles, p.row_blocks);
    } else if (kind == 'd') {
      scanf("%%d %%d %%d %%d %%d", &a, &b, &c, &d, &e);
      const GatedDeltaPlan p = gated_delta_plan(a, b, c, d, e);
      printf("%%d %%d %%d ", p.row_limit, p.row_vectors, p.row_chunks);
      printf("%%d %%d ", p.rule_blocks, p.shared_bytes);
      printf("%%lld %%lld %%lld %%lld ", p.q_rows, p.k_rows, p.v_rows, p.gate_rows);
      printf("%%lld\n", p.workspace_bytes);
    } else if (kind == 's') {
      scanf("%%d %%d %%d %%d", &a, &b, &c, &d);
      const SelectPlan p = select_plan(a, b, c, d);
      printf("%%d %%d %%d 0 ", p.chunks, p.chunk_elements, p.shared_bytes);
      printf("%%lld %%lld ", p.chunk_places, p.candidates);
      printf("%%lld %%lld\n", p.next, p.workspace_bytes);
    } else {
      scanf("%%d %%d %%d", &a, &b, &c);
      const AcceptPlan p = accept_plan(a, b, c);
      printf("%%d %%lld\n", p.chunks, p.workspace_bytes);
    }
  }
}
"""


def _attention_cases() -> list[dict[str, int]]:
    """Return every head_dim with every tile and its edges; then random ones."""
    edges = [
        dict(zip(ATTENTION_SIZES, values, strict=True))
        for values in product(
            (1, 3, 32),
            (1, 8, 16, 17, 33, 65, 512, 2048),
            (32,),
            (8,),
            (64, 96, 128, 256),
            (64, 128, 32832),
            (0, 128),
            (20, 132, 256),
            (100 << 10, 228 << 10),
        )
    ]
    random = np.random.default_rng(0)
    for _ in range(500):
        kv_heads = int(random.integers(1, 17))
        values = (
            *random.integers(1, 65, 2),
            kv_heads * random.integers(1, 9),
            kv_heads,
            random.choice([64, 96, 128, 256]),
            random.integers(1, 40000),
            random.choice([0, 1, 100, 5000]),
            random.integers(1, 257),
            random.integers(1, 300 << 10),
        )
        edges.append(
            {name: int(value) for name, value in zip(ATTENTION_SIZES, values, strict=True)}
        )
    return edges


def _products(names: tuple[str, ...], *axes: tuple[int, ...]) -> list[dict[str, int]]:
    return [dict(zip(names, values, strict=True)) for values in product(*axes)]


ATTENTION_CASES = _attention_cases()
ACCEPT_CASES = _products(ACCEPT_SIZES, (1, 32), (1, 16), (97, 8192, 8193, 151936, 201088))
MOE_CASES = [
    dict(zip(MOE_SIZES, values, strict=True))
    for values in [
        *product(
            (1, 3, 8, 16, 64, 65, 160, 257, 8192),
            (2880, 96),
            (2880, 104),
            (128, 5),
            (4, 1),
            (0, 1, 2, 3),
        ),
        (100_000, 7168, 2048, 256, 8, 1),
    ]
]


LINEAR_TOKENS = (1, 8, 9, 16, 17, 32, 33, 128, 129, 8192)
LINEAR_CASES = _products(("tokens", "out_size"), LINEAR_TOKENS, (1, 16, 17, 128, 129, 25600))
DELTA_CASES = [
    dict(zip(DELTA_SIZES, (batch, rows, window, *heads), strict=True))
    for batch, rows, window, heads in product(
        (1, 3, 32), (1, 8, 16, 33, 8192), (3, 18, 66), ((1, 1), (16, 16), (16, 64), (2, 96))
    )
]


VOCABS = (64, 8192, 8193, 151936, 248320, 128 * 8192, 128 * 8192 + 1, 1 << 24)
SELECT_CASES = _products(SELECT_SIZES, (1, 32), (1, 7, 63), VOCABS, (1, 16, 17, 64))


@pytest.fixture(scope="module")
def cpp(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what C++ says: `facts` by name, and a row of numbers for each case."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++ to compile plugins/kernels/*_params.h")
    facts = {name: name for name in CONSTANTS}
    for name, structure in STRUCTURES.items():
        facts[name] = f"(int)sizeof({name})"
        facts |= {
            f"{name}.{field}": f"(int)offsetof({name}, {field})" for field in _fields(structure)
        }
    folder = tmp_path_factory.mktemp("plan")
    lines = (
        "".join(f'printf("%d ", {expression}); ' for expression in facts.values())
        + 'printf("\\n");'
    )
    (folder / "plan.cpp").write_text(PROGRAM % {"facts": lines})
    subprocess.run(
        [
            "g++",
            "-std=c++17",
            "-Wall",
            "-Werror",
            "-Wno-unused-result",
            f"-I{KERNELS}",
            "plan.cpp",
            "-o",
            "plan",
        ],
        cwd=folder,
        check=True,
    )
    asked = [f"t {' '.join(map(str, case.values()))}" for case in ATTENTION_CASES]
    asked += [f"c {' '.join(map(str, case.values()))}" for case in ACCEPT_CASES]
    asked += [f"d {' '.join(map(str, case.values()))}" for case in DELTA_CASES]
    asked += [f"l {' '.join(map(str, case.values()))}" for case in LINEAR_CASES]
    asked += [f"s {' '.join(map(str, case.values()))}" for case in SELECT_CASES]
    asked += [f"m {' '.join(map(str, case.values()))}" for case in MOE_CASES]
    done = subprocess.run(
        [folder / "plan"], input="\n".join(asked), capture_output=True, text=True, check=True
    )
    first, *rows = [[int(word) for word in line.split()] for line in done.stdout.splitlines()]
    found: dict[str, Any] = {"facts": dict(zip(facts, first, strict=True))}
    for name, cases in (
        ("attention", ATTENTION_CASES),
        ("accept", ACCEPT_CASES),
        ("gated_delta", DELTA_CASES),
        ("linear", LINEAR_CASES),
        ("select", SELECT_CASES),
        ("moe", MOE_CASES),
    ):
        found[name], rows = rows[: len(cases)], rows[len(cases) :]
    return found


def _fields(structure: type[Structure]) -> list[str]:
    return [field[0] for field in structure._fields_]


def test_constants_sizes_and_offsets(cpp: dict[str, Any]) -> None:
    ours: dict[str, int] = dict(CONSTANTS)
    for name, structure in STRUCTURES.items():
        ours[name] = len(bytes(structure()))
        ours |= {
            f"{name}.{field}": getattr(structure, field).offset for field in _fields(structure)
        }
    assert cpp["facts"] == ours


def test_attention_plans(cpp: dict[str, Any]) -> None:
    for case, expected in zip(ATTENTION_CASES, cpp["attention"], strict=True):
        p = attention_plan(**case)
        tile = [p.tile.rows, p.tile.warps, p.tile.keys, p.tile.ctas]
        splits = [p.row_tiles, p.ctas, p.even_splits, p.split_limit]
        found = [*tile, *splits, p.shared_bytes, p.workspace_bytes]
        assert found == expected, json.dumps(case)


def test_accept_plans(cpp: dict[str, Any]) -> None:
    for case, expected in zip(ACCEPT_CASES, cpp["accept"], strict=True):
        p = accept_plan(**case)
        assert [p.chunks, p.workspace_bytes] == expected, json.dumps(case)


def test_moe_plans(cpp: dict[str, Any]) -> None:
    for case, expected in zip(MOE_CASES, cpp["moe"], strict=True):
        p = moe_plan(**case)
        blocks = [p.gate_up_blocks, p.down_blocks, p.sum_blocks]
        found = [p.tile.tokens, p.tile.row_warps, p.groups, *blocks, p.shared_bytes]
        assert [*found, *p.parts.values(), p.workspace_bytes] == expected, json.dumps(case)
    assert {case.tile for case in (moe_plan(**case) for case in MOE_CASES)} == set(
        params.MOE_TILES
    )


def test_block_linear_plans(cpp: dict[str, Any]) -> None:
    for case, expected in zip(LINEAR_CASES, cpp["linear"], strict=True):
        p = block_linear_plan(**case)
        found = [p.tile.tokens, p.tile.row_warps, p.token_tiles, p.row_blocks]
        assert found == expected, json.dumps(case)
    tiles = {block_linear_plan(**case).tile for case in LINEAR_CASES}
    assert tiles == set(params.LINEAR_TILES)


@pytest.mark.parametrize("weight_format", [0, 1, 2, 3])
def test_the_unit_of_experts_is_what_a_thread_reads(weight_format: int) -> None:
    bits = 16 if weight_format == 0 else 32 / params.PACKED_OF_WORD[weight_format]
    assert params.moe_unit(weight_format) * bits == 8 * 16


def test_gated_delta_plans(cpp: dict[str, Any]) -> None:
    for case, expected in zip(DELTA_CASES, cpp["gated_delta"], strict=True):
        p = gated_delta_plan(**case)
        launches = [p.row_limit, p.row_vectors, p.row_chunks, p.rule_blocks, p.shared_bytes]
        assert [*launches, *p.parts.values(), p.workspace_bytes] == expected, json.dumps(case)
        assert all(begin % 16 == 0 for begin in p.parts.values())


def test_select_plans(cpp: dict[str, Any]) -> None:
    for case, expected in zip(SELECT_CASES, cpp["select"], strict=True):
        p = select_plan(**case)
        found = [p.chunks, p.chunk_elements, p.shared_bytes, *p.parts.values()]
        assert [*found, p.workspace_bytes] == expected, json.dumps(case)
        assert p.shared_bytes <= 48 << 10  # what every GPU gives without being asked
        assert p.chunks * case["top_k"] <= 8192  # that a CTA merges at once


def test_candidates_of_a_config_fit_the_kernel() -> None:
    assert params.MAX_CANDIDATES == MAX_CANDIDATES


def test_the_workspace_of_gated_delta_grows_with_slots_and_rows() -> None:
    sizes = {"window_rows": 18, "key_heads": 16, "value_heads": 48}
    for batch in (1, 2):
        plans = [gated_delta_plan(batch=batch, rows=rows, **sizes) for rows in range(1, 80)]
        needed = [made.workspace_bytes for made in plans]
        assert needed == sorted(needed)
        assert needed[-1] < gated_delta_plan(batch=batch + 1, rows=79, **sizes).workspace_bytes


def test_the_largest_block_and_published_heads_fit_the_kernels() -> None:
    window_rows = params.DELTA_HISTORY + MAX_BLOCK_SIZE - 1
    made = gated_delta_plan(
        batch=1, rows=1, window_rows=window_rows, key_heads=16, value_heads=64
    )
    assert made.shared_bytes <= params.DELTA_MAX_SHARED_BYTES


def test_experts_of_a_config_fit_the_kernels() -> None:
    assert params.MAX_EXPERTS == MAX_EXPERTS


@pytest.mark.parametrize("weight_format", [0, 1, 2, 3])
def test_the_workspace_of_experts_grows_with_tokens(weight_format: int) -> None:
    sizes = {
        "hidden": 2880,
        "inner_size": 96,
        "experts": 32,
        "top_k": 4,
        "weight_format": weight_format,
    }
    needed = [moe_plan(tokens=tokens, **sizes).workspace_bytes for tokens in range(1, 300)]
    assert needed == sorted(needed)


@pytest.mark.parametrize(
    ("q_heads", "kv_heads", "head_dim"), [(32, 8, 128), (64, 8, 64), (3, 1, 96), (8, 8, 256)]
)
def test_workspace_of_largest_call_suffices_for_smaller(
    q_heads: int, kv_heads: int, head_dim: int
) -> None:
    heads = {"q_heads": q_heads, "kv_heads": kv_heads, "head_dim": head_dim}
    heads |= {"cache_len": 4096, "window": 0}
    for batch, rows in ((1, 1), (1, 600), (8, 16), (32, 10)):
        enough = attention_workspace(batch=batch, rows=rows, **heads)
        gpus = product((1, 132, params.MAX_PROCESSORS), (0, 1 << 20))
        needed = []
        for b, r, gpu in product(range(1, batch + 1), range(1, rows + 1), gpus):
            of_gpu = dict(zip(("processors", "processor_shared_bytes"), gpu, strict=True))
            needed.append(attention_plan(batch=b, rows=r, **of_gpu, **heads).workspace_bytes)
        assert max(needed) <= enough
        assert enough <= 3 * max(needed)


def test_the_workspace_of_a_cache_of_one_tile_is_none() -> None:
    assert (
        attention_workspace(
            batch=4, rows=8, q_heads=8, kv_heads=2, head_dim=64, cache_len=32, window=0
        )
        == 0
    )
