"""Plans of memory beside engines of every family, format and option, built by TensorRT-RTX."""

from __future__ import annotations

import re
from concurrent.futures import Executor, Future
from dataclasses import replace
from pathlib import Path

import pytest

from tests.builder.plan_cases import CASES, PlanCase
from tests.fixtures.chosen import chosen
from trtllm_dflash.builder.build_engine import build_engine
from trtllm_dflash.builder.dry_run import preview_build
from trtllm_dflash.builder.memory_plan import MemoryPlan
from trtllm_dflash.engine_dir.files import ENGINE_FILE, LOG_FILE

pytestmark = pytest.mark.slow

pytest.importorskip("tensorrt_rtx")

# The compiler's own scratch cannot be told exactly: it is never more than the plan, and the plan
# is never more than this times it.
MOST = 1.8
Made = tuple[MemoryPlan, Path]


@pytest.fixture(scope="module")
def made(
    request: pytest.FixtureRequest,
    two_at_once: Executor,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[PlanCase, Future[Made]]:
    """Start to build the engines of all tests."""

    def build(case: PlanCase) -> Made:
        config = case.make(tmp_path_factory.mktemp("case"))
        plan = preview_build(replace(config, output_dir=config.output_dir / "none")).plan
        return plan, build_engine(config).directory

    return {case: two_at_once.submit(build, case) for (case,) in chosen(request, "case")}


@pytest.mark.sample(3)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_plan_is_near_the_engine(
    case: PlanCase, made: dict[PlanCase, Future[Made]]
) -> None:
    plan, directory = made[case].result(timeout=1200)
    real = (directory / ENGINE_FILE).stat().st_size
    assert abs(plan.engine_bytes - real) < 0.03 * real, plan.engine_parts()
    log = (directory / LOG_FILE).read_text()
    steps = max(map(int, re.findall(r"Total Activation Memory: (\d+)", log)))
    assert steps <= plan.step_bytes() < MOST * steps
