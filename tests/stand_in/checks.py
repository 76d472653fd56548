"""What the stand-in tier checks of one pair's engines; a test calls these for each pair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.stand_in import scenarios
from tests.stand_in.agreement import Nearness, parted
from tests.stand_in.driver import Setup
from tests.stand_in.expected import expected_tokens, expected_trace
from tests.stand_in.pairs import Engines, random_prompts
from tests.stand_in.process import StandIn
from tests.stand_in.traces import same_share
from trtllm_dflash.engine_dir.config import EngineConfig

GREEDY: dict[str, Any] = {"max_tokens": 12}
SAMPLED = GREEDY | {"max_tokens": 2, "temperature": 0.9, "top_k": 20, "top_p": 0.9, "seed": 3}
# More than there are slots, one longer than a chunk.
PROMPTS = random_prompts(3, 11, 2, 30, 5)
# The first soon fills its sequence, so that another moves to its slot.
LONG_PROMPTS = random_prompts(86, 11, 2, 30, 5)
# Keys for three splits, for one and for two, side by side. There are few multiprocessors, so that a
# CTA has several splits.
SPLIT_PROMPTS = random_prompts(830, 5, 540)
SPLIT = Setup(processors=4, late=True)
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
    """Check greedy answers, with fewer drafts of the drafter alone too, and sampled ones."""
    draft_len = min(1, EngineConfig.load(engines.gpu).draft_len)
    narrow = GREEDY | {"draft_len": draft_len, "drafts": "dflash"}
    calls = [GREEDY, narrow, SAMPLED]
    report = process.run(scenarios.generate, engines.gpu, prompts, calls, setup)
    *greedy, sampled = report.tokens
    expected = expected_tokens(engines.twin, prompts, **GREEDY)
    for tokens in greedy:
        parted(engines.twin, prompts, tokens, expected, near)
    drawn = expected_tokens(engines.twin, prompts, **SAMPLED)
    others = [ours for ours, theirs in zip(sampled, drawn, strict=True) if ours != theirs]
    assert len(others) <= near.answers, (sampled, drawn)
    assert report.faults == ()
    assert report.replays > 3


def check_arriving(
    process: StandIn, engines: Engines, setup: Setup, near: Nearness, batches: set[int]
) -> None:
    """Check a warmed engine: nothing is captured, loaded or allocated while it answers.

    It decodes in these numbers of slots among others, beside prompts that wait for their chunks.
    One draft less than the block has is asked for, whose steps are those of the whole block.
    """
    prompts = [*PROMPTS[:3], LONG_PROMPTS[0][:18]]
    fewer = max(EngineConfig.load(engines.gpu).block_size - 2, 0)
    options = {"max_tokens": 10, "stop_token_ids": [], "draft_len": fewer}
    report = process.run(scenarios.arriving, engines.gpu, prompts, options, setup)
    assert report.later == report.at_load
    assert report.at_load[0] > 4
    assert batches <= report.batches
    expected = expected_tokens(engines.twin, prompts, max_tokens=10)
    parted(engines.twin, prompts, report.tokens, expected, near)
    assert report.faults == ()


def check_drafts(
    process: StandIn,
    engines: Engines,
    setup: Setup,
    near: Nearness,
    prompts: Sequence[list[int]] = PROMPTS[:3],
) -> None:
    """Check tokens where drafts are right and wrong in turn, and the drafter's own drafts."""
    answers = expected_tokens(engines.twin, prompts, max_tokens=ANSWER)
    ours, faults = process.run(scenarios.forced_drafts, engines.gpu, prompts, answers, setup)
    theirs = expected_trace(engines.twin, prompts, answers)
    others = parted(engines.twin, prompts, ours.tokens, answers, near)
    # A slot that has parted accepts none of the drafts any more.
    still = 1 - len(others) / len(prompts)
    assert ours.accepted >= still * ACCEPTED, ours.accepted
    if not others:  # or the steps behind would be others, with other drafts
        assert same_share(ours, theirs) > _SAME_DRAFTS
    assert faults == ()


def check_splits(process: StandIn, engines: Engines, near: Nearness) -> None:
    """Check answers where some sequences' keys are split, and others' are not."""
    calls = [{"max_tokens": 8}]
    report = process.run(scenarios.generate, engines.gpu, SPLIT_PROMPTS, calls, SPLIT)
    expected = expected_tokens(engines.twin, SPLIT_PROMPTS, **calls[0])
    parted(engines.twin, SPLIT_PROMPTS, report.tokens[0], expected, near)
    assert report.faults == ()
    assert report.merges > 8
    check_drafts(process, engines, SPLIT, near, SPLIT_PROMPTS)


def check_contexts(process: StandIn, engines: Engines, scenario: Any) -> None:
    """Check answers whose calls come from other contexts or threads."""
    prompts = random_prompts(4, 18, 3)
    tokens, faults = process.run(scenario, engines.gpu, prompts, 6)
    assert tokens == expected_tokens(engines.twin, prompts, max_tokens=6)
    assert faults == []
