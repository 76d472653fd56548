"""Decode steps of few widths: ready when a session opens, and wider than asked where need be."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("tensorrt_rtx")

from tests.runtime.callers import Caller
from tests.runtime.fake_gpu import PROMPTS, SAMPLED, Gpu, open_gpu, tokens_of
from trtllm_dflash.errors import UsageError
from trtllm_dflash.runtime.async_engine import AsyncEngine
from trtllm_dflash.runtime.engine import Engine
from trtllm_dflash.runtime.scheduler import Step
from trtllm_dflash.runtime.sessions import base
from trtllm_dflash.runtime.sessions.width_ladder import WidthLadder

__all__ = ["open_gpu"]  # a fixture
LIMITS: dict[str, Any] = {"max_tokens": 12, "stop_token_ids": []}


@pytest.fixture(scope="module")
def one_draft(build_tiny: Callable[..., Path]) -> Path:
    """Build an engine with a block of 4 that verifies one draft by default."""
    return build_tiny(draft_len=1)


@pytest.mark.parametrize(
    ("block", "draft_len", "draft_lens", "rungs"),
    [
        (1, 0, None, (1,)),
        (4, 3, None, (1, 2, 4)),
        (7, 2, None, (1, 2, 3, 4, 7)),
        (16, 15, None, (1, 2, 4, 8, 16)),
        (16, 10, None, (1, 2, 4, 8, 11, 16)),
        (16, 15, [5], (6,)),
        (16, 15, [7, 0, 7], (1, 8)),
    ],
)
def test_ladder(
    block: int, draft_len: int, draft_lens: Iterable[int] | None, rungs: tuple[int, ...]
) -> None:
    ladder = WidthLadder(block, draft_len, draft_lens)
    assert ladder.rungs == rungs
    assert {width: ladder.rung(width) for width in rungs} == {width: width for width in rungs}
    for width in range(1, block + 1):
        rung = ladder.rung(width)
        assert width <= rung <= block
        assert rung in rungs or width > rungs[-1]
        assert draft_lens is not None or rung < 2 * width


def _steps(gpu: Gpu, **options: Any) -> tuple[list[list[int]], set[int]]:
    """Return the tokens of three answers, and the widths of their steps."""
    widths: set[int] = set()

    def note(step: Step) -> None:
        widths.add(step.width)

    stream = gpu.engine.stream(PROMPTS[:3], on_step=note, **LIMITS, **options)
    return [answer.token_ids for answer in stream.generations()], widths


@pytest.mark.parametrize("options", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_no_number_of_drafts_is_captured_late(
    open_gpu: Callable[..., Gpu], one_draft: Path, options: dict[str, Any]
) -> None:
    gpu = open_gpu(one_draft, warm_up=True)
    cpu = Engine.load(one_draft, num_threads=1)
    expected = tokens_of(cpu, PROMPTS[:3], **LIMITS, **options)
    graphs, contexts = gpu.driver.calls["cuGraphInstantiate"], len(gpu.trt.contexts)
    assert graphs == 3 * 3  # batches of 1, 2 and 3, widths of 1, 2 and 4
    assert contexts == graphs + 1  # prompts have one of their own
    for draft_len, width in {0: 1, 1: 2, 2: 4, 3: 4}.items():
        assert _steps(gpu, draft_len=draft_len, **options) == (expected, {width})
    for schedule, width in (({3: 2}, 4), ({2: 3}, 1)):  # the second one ends before three
        found = _steps(gpu, draft_len_schedule=schedule, **options)
        assert found == (expected, {width})
    assert gpu.driver.calls["cuGraphInstantiate"] == graphs
    assert len(gpu.trt.contexts) == contexts


def test_drafts_beside_fewer_drafts(open_gpu: Callable[..., Gpu], one_draft: Path) -> None:
    """An answer that asks for two drafts gets three, and has the steps of three."""
    gpu = open_gpu(one_draft, warm_up=True)
    found = []
    with gpu.engine.serve() as server:
        for draft_len in (2, 3):
            caller = Caller()
            server.submit(PROMPTS[0], on_event=caller, draft_len=draft_len, **LIMITS)
            end = caller.wait()
            found.append(end.num_draft_tokens / end.steps)
    assert found == [3, 3]


def test_named_numbers_of_drafts_are_exact(
    open_gpu: Callable[..., Gpu], one_draft: Path
) -> None:
    gpu = open_gpu(one_draft, warm_up=True, draft_lens=[0, 2])
    graphs = gpu.driver.calls["cuGraphInstantiate"]
    assert graphs == 3 * 2
    plain, one, two = (_steps(gpu, draft_len=draft_len) for draft_len in (0, 1, 2))
    assert (plain[1], one[1], two[1]) == ({1}, {3}, {3})
    assert gpu.driver.calls["cuGraphInstantiate"] == graphs
    tokens, widths = _steps(gpu, draft_len=3)  # none was named that is as large
    assert widths == {4}
    assert tokens == plain[0] == one[0] == two[0]
    assert gpu.driver.calls["cuGraphInstantiate"] > graphs


def test_without_a_warm_up_widths_are_exact(
    open_gpu: Callable[..., Gpu], one_draft: Path
) -> None:
    gpu = open_gpu(one_draft)
    assert [_steps(gpu, draft_len=draft_len)[1] for draft_len in range(4)] == [
        {1},
        {2},
        {3},
        {4},
    ]


def test_plain_engine_has_one_width(
    open_gpu: Callable[..., Gpu], build_tiny: Callable[..., Path]
) -> None:
    gpu = open_gpu(build_tiny(draft=False), warm_up=True)
    assert gpu.driver.calls["cuGraphInstantiate"] == 3
    assert _steps(gpu)[1] == {1}


@pytest.mark.parametrize(
    ("draft_lens", "words"),
    [
        ([4], r"draft_lens is 4, expected an integer from 0 to 3\. A block of .* 4 tokens"),
        ([-1], "draft_lens is -1, expected an integer from 0 to 3"),
        ([True], "draft_lens is True, expected an integer"),
        ([], r"draft_lens is empty\. Give a number of drafts"),
        ("3", "draft_lens is '3', expected numbers of drafts"),
        (3, "draft_lens is 3, expected numbers of drafts"),
    ],
)
def test_numbers_that_no_request_can_ask_for(
    one_draft: Path, draft_lens: Any, words: str
) -> None:
    for load in (Engine.load, AsyncEngine.load):
        with pytest.raises(UsageError, match=words):
            load(one_draft, draft_lens=draft_lens)


def test_loading_hands_numbers_to_the_session(
    one_draft: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    def opened(*_: Any, **options: Any) -> Any:
        given.append(options["draft_lens"])
        return SimpleNamespace(step_width=lambda width: width, may_skip_drafter=False)

    monkeypatch.setitem(base.SESSIONS, "onnxruntime", "tests.runtime.test_step_widths:opened")
    monkeypatch.setitem(globals(), "opened", opened)
    Engine.load(one_draft)
    Engine.load(one_draft, draft_lens=range(2))
    assert given == [None, {0, 1}]
