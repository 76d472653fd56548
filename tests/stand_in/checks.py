"""What the stand-in tier checks of one pair's engines; a test calls these for each pair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.stand_in import scenarios
from tests.stand_in.agreement import Nearness, check_greedy, differing
from tests.stand_in.driver import Setup
from tests.stand_in.pairs import Engines, random_prompts
from tests.stand_in.process import StandIn
from tests.stand_in.traces import same_share, trace
from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.runtime.engine import Engine

GREEDY: dict[str, Any] = {"max_tokens": 12, "stop_token_ids": []}
SAMPLED = GREEDY | {"max_tokens": 2, "temperature": 0.9, "top_k": 20, "top_p": 0.9, "seed": 3}
# More than there are slots, one longer than a chunk.
PROMPTS = random_prompts(3, 11, 2, 30, 5)
# The first soon fills its sequence, so that another moves to its slot.
LONG_PROMPTS = random_prompts(86, 11, 2, 30, 5)
# Tokens of answers whose drafts are forced, and how many of them are accepted.
ANSWER, ACCEPTED = 24, 20
_SAME_DRAFTS = 0.9


def check_tokens(
    process: StandIn,
    engines: Engines,
    setup: Setup,
    near: Nearness,
    prompts: Sequence[list[int]] = LONG_PROMPTS,
) -> None:
    """Check greedy answers, with fewer drafts too, and sampled ones."""
    narrow = GREEDY | {"draft_len": min(1, EngineConfig.load(engines.gpu).draft_len)}
    calls = [GREEDY, narrow, SAMPLED]
    report = process.run(scenarios.generate, engines.gpu, prompts, calls, setup)
    twin = Engine.load(engines.twin, num_threads=1)
    *greedy, sampled = report.tokens
    for tokens in greedy:
        check_greedy(twin, prompts, tokens, near)
    expected = [answer.token_ids for answer in twin.generate(prompts, **SAMPLED)]
    parted = [ours for ours, theirs in zip(sampled, expected, strict=True) if ours != theirs]
    assert len(parted) <= near.answers, (sampled, expected)
    assert report.faults == ()
    assert report.replays > 3


def check_arriving(
    process: StandIn, engines: Engines, setup: Setup, near: Nearness, batches: set[int]
) -> None:
    """Check a warmed engine: nothing is captured, loaded or allocated while it answers.

    It decodes in these numbers of slots among others, beside prompts that wait for their chunks.
    """
    prompts = [*PROMPTS[:3], LONG_PROMPTS[0][:18]]
    options = GREEDY | {"max_tokens": 10}
    report = process.run(scenarios.arriving, engines.gpu, prompts, options, setup)
    assert report.later == report.at_load
    assert report.at_load[0] > 4
    assert batches <= report.batches
    check_greedy(Engine.load(engines.twin, num_threads=1), prompts, report.tokens, near)
    assert report.faults == ()


def check_drafts(
    process: StandIn,
    engines: Engines,
    setup: Setup,
    near: Nearness,
    prompts: Sequence[list[int]] = PROMPTS[:3],
) -> None:
    """Check tokens where drafts are right and wrong in turn, and the drafter's own drafts."""
    twin = Engine.load(engines.twin, num_threads=1)
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
    # A slot that has parted accepts none of the drafts any more, and drafts behind other tokens.
    still = 1 - len(parted) / len(prompts)
    assert ours.accepted >= still * ACCEPTED, ours.accepted
    assert same_share(ours, theirs) > still * _SAME_DRAFTS
    assert faults == ()


def check_contexts(process: StandIn, engines: Engines, scenario: Any) -> None:
    """Check answers whose calls come from other contexts or threads."""
    prompts = random_prompts(4, 18, 3)
    tokens, faults = process.run(scenario, engines.gpu, prompts, 6)
    twin = Engine.load(engines.twin, num_threads=1)
    answers = twin.generate(prompts, max_tokens=6, stop_token_ids=[])
    assert tokens == [answer.token_ids for answer in answers]
    assert faults == []
