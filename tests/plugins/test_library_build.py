"""CMake builds both libraries; nvcc's report on the kernels. (NVRTC's, for every GPU:
test_compile.py.)
"""

from __future__ import annotations

import re
import shutil
from itertools import product
from pathlib import Path

import pytest

from tests.plugins.cubins import most_spills
from tests.plugins.library import HEAD_DIMS, PLUGINS, HostMemory, Library, run
from trtllm_dflash.trt_plugins.params import LINEAR_TILES, MOE_TILES

pytestmark = pytest.mark.slow

FUNCTION = re.compile(
    r"Compiling entry function '(?P<name>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes"
    r" spill loads",
    re.DOTALL,
)


def _frames(log: str) -> dict[str, tuple[int, int, int]]:
    """Return for each kernel the bytes of its stack frame, spill stores and spill loads."""
    return {
        found["name"]: (int(found["stack"]), int(found["stores"]), int(found["loads"]))
        for found in FUNCTION.finditer(log)
    }


def test_nvcc_spills_as_little_as_nvrtc(real_path: Path, emulated: Library) -> None:
    """For every kernel that the launchers can choose."""
    planned = set()
    for dim, rows in product(HEAD_DIMS, (1, 16, 17, 32, 33, 64, 65, 97, 128, 129, 2048)):
        plan = emulated.attention_plan(1, rows, 1, 1, dim, 4096, 0, 132)
        planned.add(f"dflash_attention_d{dim}_r{plan.tile_rows}")
    attention = planned | {f"dflash_attention_merge_d{dim}" for dim in HEAD_DIMS}
    attention |= {f"{name}_fp8" for name in attention}
    accept = {f"dflash_accept_{part}" for part in ("scan", "choose", "finish")}
    frames = _frames(real_path.with_name("build.log").read_text())
    parts = (
        "route",
        "list",
        "sum",
        *(f"{half}_t{tile.tokens}" for tile in MOE_TILES for half in ("gate_up", "down")),
    )
    suffixes = ("", "_mxfp4", "_nvfp4", "_fp8")
    experts = {f"dflash_moe_{part}{suffix}" for part, suffix in product(parts, suffixes)}
    delta = {f"dflash_gated_delta_{part}" for part in ("rows", "rule")}
    linear = {f"dflash_block_linear_t{tile.tokens}" for tile in LINEAR_TILES}
    selector = {f"dflash_select_{part}" for part in ("scan", "pairs", "walk")}
    argmax = {f"dflash_argmax_{part}" for part in ("scan", "choose")}
    lookup = {"dflash_lookup_choose"}
    adjust = {f"dflash_adjust_{part}" for part in ("count", "rows", "few")}
    kernels = (
        attention | accept | argmax | lookup | adjust | experts | delta | linear | selector
    )
    assert set(frames) == kernels
    for name, (_, stores, loads) in frames.items():
        assert stores + loads <= most_spills(name), name


def test_a_spill_would_be_seen() -> None:
    """The report of a kernel that spills, as ptxas words it."""
    log = (
        "ptxas info    : Compiling entry function 'k' for 'sm_80'\nptxas info    : Function"
        " properties for k\n    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads\n"
    )
    assert _frames(log) == {"k": (8, 4, 12)}


def test_cmake_builds_the_emulated_library(tmp_path: Path) -> None:
    if shutil.which("cmake") is None:
        pytest.skip("needs cmake")
    run(["cmake", "-S", str(PLUGINS), "-B", str(tmp_path)])
    run(
        ["cmake", "--build", str(tmp_path), "--target", "dflash_kernels_emulated", "--parallel"]
    )
    library = tmp_path / "libdflash_kernels_emulated.so"
    assert min(Library(library, HostMemory(), emulated=True).processors()) > 0
