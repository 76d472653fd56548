"""The whole step graph with plugin nodes over the stand-in driver: tokens of the CPU engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("tensorrt_rtx")
pytest.importorskip("cuda.bindings.driver")

from tests.stand_in import scenarios
from tests.stand_in.agreement import Nearness, check_greedy, differing
from tests.stand_in.driver import Setup
from tests.stand_in.pairs import PAIRS, Engines, random_prompts
from tests.stand_in.process import StandIn
from tests.stand_in.traces import same_share, trace
from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.runtime.engine import Engine

GREEDY: dict[str, Any] = {"max_tokens": 12, "stop_token_ids": []}
SAMPLED = GREEDY | {"max_tokens": 2, "temperature": 0.9, "top_k": 20, "top_p": 0.9, "seed": 3}
# More than there are slots, one longer than a chunk: slots are used again and moved.
PROMPTS = random_prompts(3, 11, 2, 30, 5)
ANSWER = 16  # tokens of answers whose drafts are forced


def check_tokens(process: StandIn, engines: Engines, setup: Setup, near: Nearness) -> None:
    """Check greedy answers, with fewer drafts too, and sampled ones."""
    narrow = GREEDY | {"draft_len": min(1, EngineConfig.load(engines.gpu).draft_len)}
    calls = [GREEDY, narrow, SAMPLED]
    report = process.run(scenarios.generate, engines.gpu, PROMPTS, calls, setup)
    twin = Engine.load(engines.twin, num_threads=1)
    *greedy, sampled = report.tokens
    for tokens in greedy:
        check_greedy(twin, PROMPTS, tokens, near)
    expected = [answer.token_ids for answer in twin.generate(PROMPTS, **SAMPLED)]
    parted = [ours for ours, theirs in zip(sampled, expected, strict=True) if ours != theirs]
    assert len(parted) <= near.answers, (sampled, expected)
    assert report.faults == ()
    assert report.replays > 3


def check_drafts(process: StandIn, engines: Engines, setup: Setup, near: Nearness) -> None:
    """Check tokens where drafts are right and wrong in turn, and the drafter's own drafts."""
    twin = Engine.load(engines.twin, num_threads=1)
    prompts = PROMPTS[:3]
    answers = [
        answer.token_ids
        for answer in twin.generate(prompts, max_tokens=ANSWER, stop_token_ids=[])
    ]
    ours, faults = process.run(scenarios.forced_drafts, engines.gpu, prompts, answers, setup)
    session = twin._session
    theirs = trace(session, lambda: session._slots["next_ids"], prompts, answers)
    parted = [
        slot
        for slot, (tokens, answer) in enumerate(zip(ours.tokens, answers, strict=True))
        if differing(tokens, answer[: len(tokens)]) is not None
    ]
    assert len(parted) <= near.answers, (ours.tokens, answers)
    assert ours.accepted >= 8
    assert same_share(ours, theirs) > (0.5 if parted else 0.9)
    assert faults == ()


def test_tokens_of_the_quick_pair(
    quick_stand_in: StandIn, pair_engines: Callable[[str], Engines]
) -> None:
    engines, near = pair_engines("llama"), PAIRS["llama"].near
    check_tokens(quick_stand_in, engines, Setup(), near)
    check_drafts(quick_stand_in, engines, Setup(late=True), near)


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRS)
def test_tokens_are_the_twins(
    stand_in: StandIn, pair_engines: Callable[[str], Engines], name: str
) -> None:
    late = list(PAIRS).index(name) % 2 == 1
    engines, near = pair_engines(name), PAIRS[name].near
    check_tokens(stand_in, engines, Setup(late=late), near)
    if PAIRS[name].variant:
        check_drafts(stand_in, engines, Setup(late=not late), near)
