"""The number of drafts by itself: the width that gives the most tokens a second."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.runtime.fake_session import FakeSession, fake_config
from trtllm_dflash.errors import UsageError
from trtllm_dflash.options.draft_sources import DraftSource
from trtllm_dflash.options.sampling import SamplingParams
from trtllm_dflash.runtime.draft_acceptance import Acceptance
from trtllm_dflash.runtime.draft_len_chooser import DraftLenChooser, candidate_widths
from trtllm_dflash.runtime.engine import Engine
from trtllm_dflash.runtime.preprocess import make_requests
from trtllm_dflash.runtime.request import Request

BLOCK = 8
WIDTHS = (4, 1, 2, 8)


def sequence(source: DraftSource = "dflash") -> Request:
    """Return a request that leaves its number of drafts open; all are of one source."""
    config = fake_config(block_size=BLOCK)
    (request,) = make_requests([[3]], SamplingParams(draft_len="auto"), config)
    request.next_source = source
    return request


def simulated(
    chances: dict[DraftSource, float], seconds: dict[int, float], *, steps: int = 400
) -> dict[int, int]:
    """Return how often each width was chosen, where draft i is accepted by its source's chance."""
    draws = random.Random(3)
    chooser = DraftLenChooser(BLOCK, WIDTHS)
    sequences = [sequence(source) for source in chances]
    chosen = dict.fromkeys(WIDTHS, 0)
    for _ in range(steps):
        width = chooser.width_for(sequences)
        chosen[width] += 1
        for request in sequences:
            accepted = 0
            while accepted < width - 1 and draws.random() < chances[request.next_source]:
                accepted += 1
            request.count_step(accepted + 1, width - 1)
        chooser.note_time(len(sequences), width, seconds[width] * draws.uniform(0.9, 1.1))
    return chosen


@pytest.mark.parametrize(
    ("chance", "seconds", "best"),
    [
        (0.9, {1: 1.0, 2: 1.0, 4: 1.0, 8: 1.0}, 8),  # drafts cost nothing
        (0.05, {1: 1.0, 2: 1.2, 4: 1.4, 8: 2.0}, 1),  # they lose
        (0.6, {1: 1.0, 2: 1.05, 4: 1.1, 8: 2.0}, 4),  # up to four they pay
        (0.3, {1: 1.0, 2: 1.1, 4: 1.5, 8: 3.0}, 2),
    ],
)
def test_the_width_that_pays_is_chosen(
    chance: float, seconds: dict[int, float], best: int
) -> None:
    chosen = simulated({"dflash": chance}, seconds)
    assert chosen[best] > 350
    assert all(count >= 1 for count in chosen.values()), "every width is tried"


def test_sequences_of_two_sources_share_a_step() -> None:
    """One gains by wide steps more than the other loses by them."""
    seconds = {1: 1.0, 2: 1.1, 4: 1.2, 8: 1.6}
    assert simulated({"dflash": 0.1, "lookup": 0.95}, seconds)[8] > 350
    assert simulated({"dflash": 0.1}, seconds)[8] < 50


def test_a_new_sequence_begins_with_what_all_had() -> None:
    overall = Acceptance(BLOCK)
    first, second = Acceptance(BLOCK, overall), Acceptance(BLOCK, overall)
    for _ in range(40):
        first.note("dflash", 7, 7)
    assert second.expected_tokens("dflash")[7] > 6
    assert second.expected_tokens("lookup")[7] < 3, "of the other source nothing is known"


def test_its_own_blocks_soon_count_more_than_those_of_all() -> None:
    overall = Acceptance(BLOCK)
    for _ in range(60):
        overall.note("dflash", 7, 0)
    own = Acceptance(BLOCK, overall)
    for _ in range(12):
        own.note("dflash", 7, 7)
    assert own.expected_tokens("dflash")[7] > 4


def test_what_was_not_verified_counts_as_nothing() -> None:
    """A draft behind a refused one, or outside the step, says nothing of its place."""
    acceptance = Acceptance(BLOCK)
    for _ in range(30):
        acceptance.note("dflash", 2, 2)
        acceptance.note("dflash", 0, 0)
    probabilities = acceptance.probabilities("dflash")
    assert min(probabilities) > 0.9
    for _ in range(30):
        acceptance.note("dflash", 7, 2)
    assert acceptance.probabilities("dflash")[2] < 0.3


def test_times_follow_the_machine() -> None:
    """A width that has become slow is left, and one that has become quick again is found."""
    chooser, request = DraftLenChooser(BLOCK, WIDTHS), sequence()

    def run(steps: int, seconds: dict[int, float]) -> list[int]:
        chosen = []
        for _ in range(steps):
            width = chooser.width_for([request])
            request.count_step(1 + min(width - 1, 3), width - 1)
            chooser.note_time(1, width, seconds[width])
            chosen.append(width)
        return chosen

    cheap, dear = dict.fromkeys(WIDTHS, 1.0), {1: 1.0, 2: 2.0, 4: 5.0, 8: 9.0}
    assert run(100, cheap).count(1) < 5
    assert run(300, dear)[-40:].count(1) > 30
    assert run(900, cheap)[-40:].count(1) < 5


def test_a_request_with_a_number_gets_it_beside_one_without() -> None:
    config = fake_config(block_size=BLOCK)
    (fixed,) = make_requests([[3]], SamplingParams(draft_len=5), config)
    chooser = DraftLenChooser(BLOCK, [1])
    assert chooser.width_for([fixed]) == 6
    assert chooser.width_for([fixed, sequence()]) == 6
    assert chooser.width_for([sequence()]) == 1


@pytest.mark.parametrize("lookahead", [0, 1])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_tokens_do_not_depend_on_what_is_chosen(lookahead: int, temperature: float) -> None:
    config = fake_config(block_size=6, max_batch_size=3)
    engine = Engine(config, FakeSession(config, lookahead=lookahead))
    plain = Engine(config, FakeSession(config))
    prompts = [[3, 4], [1] * 9, [7], [12, 3, 5], list(range(3, 19))]
    options: dict[str, Any] = {"max_tokens": 40, "temperature": temperature, "seed": 2}
    answers = engine.generate(prompts, draft_len="auto", ignore_eos=True, **options)
    expected = plain.generate(prompts, draft=False, ignore_eos=True, **options)
    assert [a.token_ids for a in answers] == [a.token_ids for a in expected]
    widths = {width for first, _, width in engine._session.steps if not first}
    assert set(candidate_widths(config, engine._session)) <= widths


def test_an_engine_without_drafter_has_no_drafts_to_choose() -> None:
    config = fake_config(block_size=1)
    engine = Engine(config, FakeSession(config))
    (answer,) = engine.generate([[3]], draft_len="auto", max_tokens=5, stop_token_ids=[])
    assert answer.acceptance_lengths == [1] * 4


@pytest.mark.parametrize("value", ["many", "", "AUTO", -1, 1.5, True])
def test_other_values_are_refused(value: Any) -> None:
    with pytest.raises(UsageError, match=r"draft_len is .*, expected an integer"):
        SamplingParams(draft_len=value)
