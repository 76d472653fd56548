"""The parts of `make gpu-check` that run whole engines, over the stand-in driver to their end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

pytest.importorskip("tensorrt_rtx")
pytest.importorskip("cuda.bindings.driver")

from plugins.bench.gpu_check import engine, stand_in_engine
from plugins.bench.gpu_check.rows import Check, read_rows
from tests.stand_in.driver import Setup
from tests.stand_in.pairs import Engines
from tests.stand_in.process import StandIn, driver
from tests.stand_in.small_trt import SmallTrt
from trtllm_dflash.runtime.sessions import trt_engine

pytestmark = pytest.mark.slow


def _rows(folder: Path, setup: Setup, work: Callable[[Check], None]) -> list[dict[str, Any]]:
    driver().reset(setup)
    work(Check(folder / "rows", folder, small=True))
    return read_rows(folder / "rows")


def pairs(folder: Path, skipped: str) -> list[dict[str, Any]]:
    return _rows(folder, Setup(skip=skipped), stand_in_engine.check_pairs)


def steps(folder: Path, directory: Path) -> list[dict[str, Any]]:
    def work(check: Check) -> None:
        engine.check_directory(check, "pair", directory, must_load=True)

    with mock.patch.object(trt_engine, "trt", SmallTrt()):
        return _rows(folder, Setup(), work)


def test_the_step_graph_runs_in_host_memory(quick_stand_in: StandIn, tmp_path: Path) -> None:
    rows = quick_stand_in.run(pairs, tmp_path, "")
    assert [(row["case"], row["result"]) for row in rows] == [("llama", "ok")], rows
    assert rows[0]["tokens"] == 60


def test_a_kernel_that_does_nothing_is_found(quick_stand_in: StandIn, tmp_path: Path) -> None:
    rows = quick_stand_in.run(pairs, tmp_path, "dflash_accept_finish")
    assert [(row["case"], row["result"]) for row in rows] == [("llama", "failed")], rows


def test_steps_of_an_engine_are_measured(
    quick_stand_in: StandIn, pair_engines: Callable[[str], Engines], tmp_path: Path
) -> None:
    """All but the gap between steps, for which the stand-in driver has no clock."""
    rows = quick_stand_in.run(steps, tmp_path, pair_engines("llama").gpu)
    results = {row["case"]: row["result"] for row in rows}
    gaps = {name: result for name, result in results.items() if "host gap" in name}
    assert list(gaps.values()) == ["failed", "failed"], rows
    assert all("cuEventElapsedTime" in row["reason"] for row in rows if row["case"] in gaps)
    others = {name: result for name, result in results.items() if name not in gaps}
    assert len(others) == 6
    assert set(others.values()) == {"ok"}, rows
