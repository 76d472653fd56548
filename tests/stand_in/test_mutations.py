"""The tier finds faults: each mutation of the GPU path fails at least one of its checks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("tensorrt_rtx")
pytest.importorskip("cuda.bindings.driver")

from tests.stand_in import mutations, scenarios
from tests.stand_in.agreement import Nearness
from tests.stand_in.checks import (
    LONG_PROMPTS,
    PROMPTS,
    SPLIT,
    SPLIT_PROMPTS,
    check_contexts,
    check_drafts,
    check_tokens,
)
from tests.stand_in.driver import Setup
from tests.stand_in.pairs import PAIRS, Engines
from tests.stand_in.process import StandIn
from trtllm_dflash.errors import EngineError

pytestmark = pytest.mark.slow
PAIR = "windows"


class Mutated(StandIn):
    """The stand-in's process, in which all calls find the fault."""

    def __init__(self, process: StandIn, name: str) -> None:
        self._process = process
        self._name = name

    def run(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        return self._process.run(mutations.under, self._name, function, *arguments, **options)


def run_checks(process: StandIn, engines: Engines) -> None:
    near = PAIRS[PAIR].near
    check_drafts(process, engines, Setup(late=True), near, LONG_PROMPTS[1:4])
    check_tokens(process, engines, Setup(late=True), near, LONG_PROMPTS)
    check_contexts(process, engines, scenarios.on_second_gpu)


def test_without_a_fault(
    quick_stand_in: StandIn, pair_engines: Callable[[str], Engines]
) -> None:
    run_checks(quick_stand_in, pair_engines(PAIR))


@pytest.mark.parametrize("name", mutations.SPLIT_MUTATIONS)
def test_fault_of_splits_is_found(
    quick_stand_in: StandIn, pair_engines: Callable[[str], Engines], name: str
) -> None:
    mutated, engines, near = (
        Mutated(quick_stand_in, name),
        pair_engines("long"),
        PAIRS["long"].near,
    )
    with pytest.raises((AssertionError, EngineError)):
        check_drafts(mutated, engines, SPLIT, near, SPLIT_PROMPTS)


def check_both(process: StandIn, engines: Engines, near: Nearness) -> None:
    check_drafts(process, engines, Setup(), near)
    check_tokens(process, engines, Setup(), near, PROMPTS)


@pytest.mark.parametrize("name", mutations.OTHER_MUTATIONS)
def test_fault_of_an_operator_is_found(
    stand_in: StandIn, pair_engines: Callable[[str], Engines], name: str
) -> None:
    pair = name.partition(":")[0]
    mutated, engines, near = Mutated(stand_in, name), pair_engines(pair), PAIRS[pair].near
    with pytest.raises((AssertionError, EngineError)):
        check_both(mutated, engines, near)


@pytest.mark.sample(9)
@pytest.mark.parametrize("name", mutations.MUTATIONS)
def test_fault_is_found(
    quick_stand_in: StandIn, pair_engines: Callable[[str], Engines], name: str
) -> None:
    with pytest.raises((AssertionError, EngineError)):
        run_checks(Mutated(quick_stand_in, name), pair_engines(PAIR))
