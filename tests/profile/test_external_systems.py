"""External systems beside the engines: the same texts and acceptance, and clocks that fit."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("dflash")

from tests.profile.conftest import DRAFTER, PROMPTS, TARGET, MakeProfile, sentence
from trtllm_dflash.errors import EngineError
from trtllm_dflash.profile.external_systems import LOOKUP_DRAFTS, load_external_systems
from trtllm_dflash.profile.result import Profile
from trtllm_dflash.profile.systems import System

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def beside(make_profile: MakeProfile) -> Profile:
    """Measure all systems at batch 1, and the engines at batch 2."""
    return make_profile(batch="1,2", draft_lens="7", against="plain,reference,hf")


def systems(names: list[str], drafter: Path | None = DRAFTER) -> dict[str, System]:
    """Return the systems by name, with one thread."""
    made = load_external_systems(
        names, TARGET, drafter, block_size=8, stop_token_ids=[], num_threads=1
    )
    return {system.name: system for system in made}


def test_external_systems_give_the_same_tokens(beside: Profile) -> None:
    names = [(result.system, result.batch) for result in beside.results]
    ours = ["plain", "DFlash 7"]
    assert names == [(name, 1) for name in [*ours, "reference", "hf", "hf lookup"]] + [
        (name, 2) for name in ours
    ]
    assert all(result.same_tokens == len(PROMPTS.prompts) for result in beside.results)
    assert {curve.name: len(curve.points) for curve in beside.curves} == {
        "plain": 2,
        "DFlash 7": 2,
        "reference": 1,
        "hf": 1,
        "hf lookup": 1,
    }


def test_reference_has_the_same_acceptance(beside: Profile) -> None:
    """All but the last step of each answer, whose block the reference shortens at the limit."""
    results = {result.system: result for result in beside.results if result.batch == 1}
    ours, theirs = results["DFlash 7"].acceptance, results["reference"].acceptance
    assert ours.by_position == pytest.approx(theirs.by_position)
    assert ours.acceptance_length == pytest.approx(theirs.acceptance_length)
    assert ours.acceptance_length > 2


def test_lookup_has_no_draft_acceptance_rate(beside: Profile) -> None:
    """It drafts only where it finds something."""
    (lookup,) = (result for result in beside.results if result.system == "hf lookup")
    assert (
        lookup.draft_len,
        lookup.acceptance.draft_acceptance_rate,
        lookup.acceptance.by_position,
    ) == (
        LOOKUP_DRAFTS,
        None,
        [],
    )
    (plain,) = (result for result in beside.results if result.system == "hf")
    assert plain.acceptance.acceptance_length == 1
    assert plain.acceptance.steps == sum(row.tokens - 1 for row in plain.by_prompt)


@pytest.mark.parametrize("name", ["reference", "hf", "hf lookup"])
def test_external_clock_covers_the_answer(name: str) -> None:
    """First token and generation make up the call, but for what prepares and ends it."""
    system = systems(["reference", "hf"])[name]
    prompts = [sentence(3, 2, 7), sentence(8, 1, 9)]
    system.run(prompts, 1, 40)
    shares = []
    for _ in range(5):  # a busy machine may stop one anywhere
        start = time.monotonic()
        found = system.run(prompts, 1, 40)
        seconds = time.monotonic() - start
        told = sum(
            answer.first_token_seconds + answer.decode_seconds for answer in found.answers
        )
        assert told <= found.seconds <= seconds
        shares.append(told / seconds)
    assert max(shares) >= 0.6
    for answer in found.answers:
        assert 39 >= sum(answer.acceptance_lengths) >= 39 - LOOKUP_DRAFTS
        assert answer.first_token_seconds > 0
    assert sum(step.seconds for step in found.steps) == pytest.approx(
        sum(answer.decode_seconds for answer in found.answers)
    )


def test_external_systems_end_at_stop_tokens() -> None:
    (expected,) = systems(["hf"])["hf"].run([sentence(3, 2, 7)], 1, 20).answers
    stop = expected.token_ids[6]
    place = expected.token_ids.index(stop)
    made = load_external_systems(
        ["reference", "hf"], TARGET, DRAFTER, block_size=8, stop_token_ids=[stop], num_threads=1
    )
    for system in made:
        (answer,) = system.run([sentence(3, 2, 7)], 1, 20).answers
        assert answer.token_ids == expected.token_ids[: place + 1], system.name


def test_external_system_without_its_package_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "dflash.model", None)
    with pytest.raises(EngineError, match="--against needs the Python package dflash"):
        systems(["reference"])
