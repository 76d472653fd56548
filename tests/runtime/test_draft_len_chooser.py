"""The number of drafts by itself: the steps that give the most tokens a second."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from tests.runtime.fake_session import FakeSession, fake_config
from trtllm_dflash.errors import UsageError
from trtllm_dflash.options.draft_len_schedule import DraftLenSchedule
from trtllm_dflash.options.draft_sources import NO_MATCH
from trtllm_dflash.options.sampling import SamplingParams
from trtllm_dflash.runtime.draft_acceptance import Acceptance
from trtllm_dflash.runtime.draft_len_chooser import DraftLenChooser, candidate_widths
from trtllm_dflash.runtime.engine import Engine
from trtllm_dflash.runtime.preprocess import make_requests
from trtllm_dflash.runtime.request import Request, StepWidths
from trtllm_dflash.runtime.step_times import StepPlan, StepTimes

BLOCK = 8
WIDTHS = (4, 1, 2, 8)
PASS = 0.2  # of a step's time, the drafter's block
CHEAP = {1: 1.0, 2: 1.05, 4: 1.1, 8: 1.2}  # seconds by width, without the drafter's block


def sequence(drafts: str = "both") -> Request:
    """Return a request that leaves its number of drafts open."""
    config = fake_config(block_size=BLOCK)
    params = SamplingParams(draft_len="auto", drafts="both")
    (request,) = make_requests([[3]], params, config)
    if drafts != "both":
        object.__setattr__(
            request.sampling, "draft_sources", {"dflash": 1, "lookup": 2}[drafts]
        )
    return request


class Simulation:
    """Steps of sequences whose drafts are accepted by chance, and whose texts match by chance.

    `chances` by the class of a block; `matches`: the share of blocks behind which a match of class
    4 is found. The first `free` steps are not counted.
    """

    def __init__(
        self,
        chances: Mapping[int, float],
        seconds: Callable[[StepPlan], float],
        *,
        matches: float = 0.0,
        sequences: list[Request] | None = None,
        may_skip: bool = True,
    ) -> None:
        self.chances = dict(chances)
        self.seconds = seconds
        self.matches = matches
        self.chooser = DraftLenChooser(BLOCK, WIDTHS, may_skip=may_skip)
        self.sequences = sequences or [sequence()]
        self.draws = random.Random(3)
        self.plans: list[StepPlan] = []
        self.time, self.tokens = 0.0, 0

    def run(self, steps: int) -> Simulation:
        """Run so many more steps; what came before no longer counts."""
        self.time, self.tokens, self.plans = 0.0, 0, []
        for _ in range(steps):
            plan = self.chooser.plan_for(self.sequences)
            self.plans.append(plan)
            for request in self.sequences:
                self._step(request, plan)
            seconds = self.seconds(plan)
            self.time += seconds
            measured = seconds * self.draws.uniform(0.95, 1.05)
            self.chooser.note_time(len(self.sequences), plan, measured)
        return self

    def _step(self, request: Request, plan: StepPlan) -> None:
        accepted = 0
        chance = self.chances.get(request.next_class, 0.05)
        while accepted < plan.width - 1 and self.draws.random() < chance:
            accepted += 1
        request.count_step(accepted + 1, plan.width - 1)
        self.tokens += accepted + 1
        sources = request.sampling.draft_sources
        request.next_class = 0 if plan.draft and sources != 2 else NO_MATCH
        if self.draws.random() < self.matches and (sources != 1 or not plan.draft):
            request.next_class = 4

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / self.time

    @property
    def drafted(self) -> float:
        """Return the share of steps in which the drafter drafted."""
        return sum(plan.draft for plan in self.plans) / len(self.plans)

    @property
    def share(self) -> dict[StepPlan, float]:
        """Return how often each kind of step was chosen."""
        return {plan: count / len(self.plans) for plan, count in Counter(self.plans).items()}


def times(by_width: Mapping[int, float], block: float = PASS) -> Callable[[StepPlan], float]:
    """Return the seconds of a plan."""
    return lambda plan: by_width[plan.width] + block * plan.draft


@pytest.mark.parametrize(
    ("chance", "seconds", "best"),
    [
        (0.9, {1: 1.0, 2: 1.0, 4: 1.0, 8: 1.0}, 8),  # drafts cost nothing
        (0.6, {1: 1.0, 2: 1.05, 4: 1.1, 8: 2.0}, 4),  # up to four they pay
        (0.7, {1: 1.0, 2: 1.1, 4: 2.5, 8: 5.0}, 2),
    ],
)
def test_the_width_that_pays_is_chosen(
    chance: float, seconds: dict[int, float], best: int
) -> None:
    run = Simulation({0: chance}, times(seconds)).run(200).run(400)
    assert run.share[StepPlan(best, True)] > 0.85


def test_a_drafter_that_loses_does_not_draft() -> None:
    """Trials lose little: the rate is nearly that of plain steps."""
    run = Simulation({0: 0.05}, times({1: 1.0, 2: 1.2, 4: 1.4, 8: 2.0})).run(100).run(1000)
    assert run.share[StepPlan(1, False)] > 0.95
    assert run.rate > 0.98
    assert any(plan.draft for plan in run.plans), "the drafter is tried now and then"


def test_a_drafter_that_has_become_good_is_found() -> None:
    run = Simulation({0: 0.05}, times(CHEAP)).run(500)
    assert run.drafted < 0.1
    run.chances[0] = 0.9
    assert run.run(1000).run(200).share[StepPlan(8, True)] > 0.9


def test_matches_alone_are_verified_as_they_come() -> None:
    """Where the drafter loses, a step is wide behind a match and narrow elsewhere."""
    run = Simulation({0: 0.05, 4: 0.95}, times({1: 1.0, 2: 1.3, 4: 1.5, 8: 2.0}), matches=0.3)
    share = run.run(200).run(500).share
    assert share[StepPlan(8, False)] > 0.2
    assert share[StepPlan(1, False)] > 0.6


def test_a_drafter_between_matches_drafts_if_it_pays() -> None:
    run = Simulation({0: 0.8, 4: 0.95}, times(CHEAP), matches=0.3).run(200).run(500)
    assert run.share[StepPlan(8, True)] > 0.8


def test_lookup_alone_never_wants_the_drafter() -> None:
    sequences = [sequence("lookup")]
    run = Simulation({4: 0.9}, times(CHEAP), matches=0.5, sequences=sequences).run(300)
    assert not any(plan.draft for plan in run.plans)


def test_the_drafter_alone_gets_no_drafts_of_lookup() -> None:
    """Where it may not draft, what lookup has found is not verified."""
    sequences = [sequence("dflash")]
    run = Simulation({0: 0.05, 4: 0.99}, times(CHEAP), matches=0.9, sequences=sequences)
    assert run.run(100).run(400).drafted < 0.1
    assert run.rate > 0.97


def test_an_engine_that_cannot_skip_always_drafts() -> None:
    run = Simulation({0: 0.05}, times({1: 1.0, 2: 1.5, 4: 2.0, 8: 3.0}), may_skip=False).run(
        300
    )
    assert all(plan.draft for plan in run.plans)
    assert run.share[StepPlan(1, True)] > 0.8


def test_sequences_of_two_kinds_share_a_step() -> None:
    """One gains by wide steps more than the other loses by them."""
    sequences = [sequence("dflash"), sequence("lookup")]
    seconds = times({1: 1.0, 2: 1.1, 4: 1.2, 8: 1.6})
    run = Simulation({0: 0.1, 4: 0.95}, seconds, matches=1.0, sequences=sequences)
    assert run.run(100).run(300).share[StepPlan(8, False)] > 0.8


def test_a_new_sequence_begins_with_what_all_had() -> None:
    overall = Acceptance(BLOCK)
    first, second = Acceptance(BLOCK, overall), Acceptance(BLOCK, overall)
    for _ in range(40):
        first.note(0, 7, 7)
    assert second.expected_tokens()[0, 7] > 6
    assert second.expected_tokens()[1, 7] < 3, "of other classes nothing is known"


def test_its_own_blocks_soon_count_more_than_those_of_all() -> None:
    overall = Acceptance(BLOCK)
    for _ in range(60):
        overall.note(0, 7, 0)
    own = Acceptance(BLOCK, overall)
    for _ in range(12):
        own.note(0, 7, 7)
    assert own.expected_tokens()[0, 7] > 4


def test_what_was_not_verified_counts_as_nothing() -> None:
    """A draft behind a refused one, or outside the step, says nothing of its place."""
    acceptance = Acceptance(BLOCK)
    for _ in range(30):
        acceptance.note(0, 2, 2)
        acceptance.note(0, 0, 0)
    assert acceptance.probabilities()[0].min() > 0.9
    for _ in range(30):
        acceptance.note(0, 7, 2)
    assert acceptance.probabilities()[0, 2] < 0.3


def test_times_follow_the_machine() -> None:
    """A width that has become slow is left, and one that has become quick again is found."""
    dear = {1: 1.0, 2: 2.5, 4: 3.0, 8: 3.5}
    run = Simulation({0: 0.8}, times(CHEAP)).run(200)
    assert run.share[StepPlan(8, True)] > 0.8
    run.seconds = times(dear)
    assert run.run(300).run(100).share[StepPlan(1, False)] > 0.8
    run.seconds = times(CHEAP)
    assert run.run(3000).run(100).share[StepPlan(8, True)] > 0.8


def test_times_of_steps_that_never_ran_are_estimated() -> None:
    known = StepTimes()
    known.note_time(StepPlan(4, True), 2.0)
    assert known.seconds(StepPlan(8, True)) > 2.0 > known.seconds(StepPlan(4, False))
    known.note_time(StepPlan(8, True), 3.0)
    known.note_time(StepPlan(4, False), 1.0)
    assert known.seconds(StepPlan(6, True)) == pytest.approx(2.5)
    assert known.seconds(StepPlan(8, False)) == pytest.approx(1.5)
    assert 0 < known.seconds(StepPlan(1, True)) < 2.0


def test_a_request_with_a_number_gets_it_beside_one_without() -> None:
    config = fake_config(block_size=BLOCK)
    (fixed,) = make_requests([[3]], SamplingParams(draft_len=5), config)
    (plain,) = make_requests([[3]], SamplingParams(draft=False), config)
    chooser = DraftLenChooser(BLOCK, [1], may_skip=True)
    assert chooser.plan_for([fixed]) == StepPlan(6, True)
    assert chooser.plan_for([fixed, sequence()]) == StepPlan(6, True)
    assert chooser.plan_for([sequence("lookup")]) == StepPlan(1, False)
    assert chooser.plan_for([plain]) == StepPlan(1, False)
    assert chooser.plan_for([plain, fixed]) == StepPlan(6, True)


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
    assert len(widths & set(candidate_widths(config, engine._session))) > 2


def test_who_names_no_number_gets_the_engines_own() -> None:
    for auto in (False, True):
        config = fake_config(block_size=6, draft_len=3, auto_draft_len=auto)
        (request,) = make_requests([[3]], SamplingParams(), config)
        assert request.widths == StepWidths(5 if auto else 3, is_auto=auto)
        (request,) = make_requests([[3]], SamplingParams(draft_len=2), config)
        assert request.widths == StepWidths(2)
        (request,) = make_requests([[3]], SamplingParams(draft_len="auto"), config)
        assert request.widths.is_auto
        schedule = DraftLenSchedule(((1, 4),))
        (request,) = make_requests([[3]], SamplingParams(draft_len_schedule=schedule), config)
        assert request.widths == StepWidths(0, schedule)
        (request,) = make_requests([[3]], SamplingParams(draft=False), config)
        assert request.widths == StepWidths(0)


def test_an_engine_with_no_number_of_its_own_chooses() -> None:
    config = fake_config(block_size=6, auto_draft_len=True)
    engine = Engine(config, FakeSession(config))
    plain = engine.generate([[3, 4]], draft=False, max_tokens=60, stop_token_ids=[])
    engine._session.steps.clear()
    answers = engine.generate([[3, 4]], max_tokens=60, stop_token_ids=[])
    assert answers[0].token_ids == plain[0].token_ids
    assert len({width for _, _, width in engine._session.steps[1:]}) > 1


def test_prompts_are_drafted_for_at_their_ends_alone() -> None:
    config = fake_config(block_size=4, max_num_tokens=5)
    for options, expected in (({}, [False, False, True]), ({"draft": False}, [False] * 3)):
        engine = Engine(config, FakeSession(config))
        engine.generate([list(range(3, 15))], max_tokens=1, **options)
        assert engine._session.drafted == expected


def test_an_engine_without_drafter_has_no_drafts_to_choose() -> None:
    config = fake_config(block_size=1)
    engine = Engine(config, FakeSession(config))
    (answer,) = engine.generate([[3]], draft_len="auto", max_tokens=5, stop_token_ids=[])
    assert answer.acceptance_lengths == [1] * 4


@pytest.mark.parametrize("value", ["many", "", "AUTO", -1, 1.5, True])
def test_other_values_are_refused(value: Any) -> None:
    with pytest.raises(UsageError, match=r"draft_len is .*, expected an integer"):
        SamplingParams(draft_len=value)
