"""The number of drafts by itself: the width that gives the most tokens a second."""

from __future__ import annotations

import random

import pytest

from trtllm_dflash.runtime.draft_len_chooser import Acceptance, Candidate, DraftLenChooser

BLOCK = 8
WIDTHS = (4, 1, 2, 8)


def simulated(
    chances: dict[str, float], seconds: dict[int, float], *, steps: int = 400, batch: int = 1
) -> dict[int, int]:
    """Return how often each width was chosen, where draft i is accepted by its source's chance."""
    draws = random.Random(3)
    chooser = DraftLenChooser(BLOCK, WIDTHS)
    sequences = [(chooser.new_sequence(), source) for source in chances]
    chosen = dict.fromkeys(WIDTHS, 0)
    for _ in range(steps):
        width = chooser.choose(batch, [Candidate(*sequence) for sequence in sequences])
        chosen[width] += 1
        for acceptance, source in sequences:
            accepted = 0
            while accepted < width - 1 and draws.random() < chances[source]:
                accepted += 1
            acceptance.note(source, width - 1, accepted)
        chooser.note_time(batch, width, seconds[width] * draws.uniform(0.9, 1.1))
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
    assert simulated({"dflash": 0.1, "lookup": 0.95}, seconds, batch=2)[8] > 350
    assert simulated({"dflash": 0.1}, seconds)[8] < 50


def test_a_new_sequence_begins_with_what_all_had() -> None:
    chooser = DraftLenChooser(BLOCK, WIDTHS)
    first = chooser.new_sequence()
    for _ in range(40):
        first.note("dflash", 7, 7)
    expected = chooser.new_sequence().expected_tokens("dflash")
    assert expected[7] > 6
    assert chooser.new_sequence().expected_tokens("lookup")[7] < 3, (
        "of the other source nothing"
    )


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
    chooser = DraftLenChooser(BLOCK, WIDTHS)
    sequence = chooser.new_sequence()

    def run(steps: int, seconds: dict[int, float]) -> list[int]:
        chosen = []
        for _ in range(steps):
            width = chooser.choose(1, [Candidate(sequence, "dflash")])
            sequence.note("dflash", width - 1, min(width - 1, 3))
            chooser.note_time(1, width, seconds[width])
            chosen.append(width)
        return chosen

    cheap, dear = dict.fromkeys(WIDTHS, 1.0), {1: 1.0, 2: 2.0, 4: 5.0, 8: 9.0}
    assert run(100, cheap).count(1) < 5
    assert run(300, dear)[-40:].count(1) > 30
    assert run(900, cheap)[-40:].count(1) < 5
