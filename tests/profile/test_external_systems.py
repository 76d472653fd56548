"""Other people's decoding beside ours: the same texts, the same acceptance, and clocks that cover
what they say.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("dflash")

from tests.profile.conftest import ASKED, DRAFTER, TARGET, MakeProfile, sentence
from trtllm_dflash.errors import EngineError
from trtllm_dflash.profile.external_systems import LOOKUP_DRAFTS, peer_sides
from trtllm_dflash.profile.result import Profile
from trtllm_dflash.profile.systems import Side


@pytest.fixture(scope="module")
def beside(make_profile: MakeProfile) -> Profile:
    """All sides; at batch 2 only ours."""
    return make_profile(batch="1,2", draft_lens="7", against="plain,reference,hf")


def sides(names: list[str], drafter: Path | None = DRAFTER) -> dict[str, Side]:
    """The sides of a call with one thread."""
    made = peer_sides(names, TARGET, drafter, block_size=8, stops=[], num_threads=1)
    return {side.name: side for side in made}


def test_all_say_the_same(beside: Profile) -> None:
    names = [(result.side, result.batch) for result in beside.results]
    ours = ["plain", "DFlash 7"]
    assert names == [(name, 1) for name in [*ours, "reference", "hf", "hf lookup"]] + [
        (name, 2) for name in ours
    ]
    assert all(result.same_tokens == len(ASKED.prompts) for result in beside.results)
    assert {curve.name: len(curve.points) for curve in beside.curves} == {
        "plain": 2,
        "DFlash 7": 2,
        "reference": 1,
        "hf": 1,
        "hf lookup": 1,
    }


def test_the_reference_accepts_as_we_do(beside: Profile) -> None:
    """All but the last step of each answer, whose block the reference shortens at the limit."""
    results = {result.side: result for result in beside.results if result.batch == 1}
    ours, theirs = results["DFlash 7"].acceptance, results["reference"].acceptance
    assert ours.by_position == pytest.approx(theirs.by_position)
    assert ours.al == pytest.approx(theirs.al)
    assert ours.al > 2


def test_lookup_has_no_share_of_drafts(beside: Profile) -> None:
    """It drafts only where it finds something."""
    (lookup,) = (result for result in beside.results if result.side == "hf lookup")
    assert (lookup.draft_len, lookup.acceptance.dar, lookup.acceptance.by_position) == (
        LOOKUP_DRAFTS,
        None,
        [],
    )
    (plain,) = (result for result in beside.results if result.side == "hf")
    assert plain.acceptance.al == 1
    assert plain.acceptance.steps == sum(row.tokens - 1 for row in plain.by_prompt)


@pytest.mark.parametrize("name", ["reference", "hf", "hf lookup"])
def test_clocks_cover_the_answer(name: str) -> None:
    """First token and generation make up the call, but for what prepares and ends it."""
    side = sides(["reference", "hf"])[name]
    prompts = [sentence(3, 2, 7), sentence(8, 1, 9)]
    side.run(prompts, 1, 40)
    start = time.monotonic()
    found = side.run(prompts, 1, 40)
    seconds = time.monotonic() - start
    told = sum(answer.first_token_seconds + answer.decode_seconds for answer in found.answers)
    assert 0.6 * seconds <= told <= found.seconds <= seconds
    for answer in found.answers:
        assert 39 >= sum(answer.acceptance_lengths) >= 39 - LOOKUP_DRAFTS
        assert answer.first_token_seconds > 0
    assert sum(step.seconds for step in found.steps) == pytest.approx(
        sum(answer.decode_seconds for answer in found.answers)
    )


def test_stop_tokens_end_all_alike() -> None:
    (expected,) = sides(["hf"])["hf"].run([sentence(3, 2, 7)], 1, 20).answers
    stop = expected.token_ids[6]
    place = expected.token_ids.index(stop)
    made = peer_sides(
        ["reference", "hf"], TARGET, DRAFTER, block_size=8, stops=[stop], num_threads=1
    )
    for side in made:
        (answer,) = side.run([sentence(3, 2, 7)], 1, 20).answers
        assert answer.token_ids == expected.token_ids[: place + 1], side.name


def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "dflash.model", None)
    with pytest.raises(EngineError, match="--against needs the Python package dflash"):
        sides(["reference"])
