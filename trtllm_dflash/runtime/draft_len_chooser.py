"""`draft_len="auto"`: as many drafts in a step as pay, by what is accepted and what steps cost.

A decode step of w tokens a sequence gives each of them its bonus and the drafts that are accepted:

    1 + sum over i = 1 … w-1 of p_1 · … · p_i

where p_i is how often draft i is accepted once those before it are. It is counted for each sequence
and each class of blocks (`draft_acceptance`). A sequence that has had few blocks takes over what
all have together. A step's time is measured for each batch size (`step_times`).

A step decides two things: how many drafts of the blocks at hand are verified, and whether the
drafter drafts the next ones. Without it they are lookup's alone, which costs next to nothing. So
there are two ways to go on, with the drafter or without. Of each the tokens a second are known, for
the best widths; the better way is taken. The width is that with the most tokens, each second of the
step's time counted as the tokens that it gives elsewhere. Where a block promises little, that is 1.

Other steps are tried now and then, since times and texts change. What that loses, against the step
that seems best, may be a small share of the time since such a step last ran. A drafter that does
not draft is tried likewise.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.runtime.draft_acceptance import Acceptance, Float64
from trtllm_dflash.runtime.request import Request
from trtllm_dflash.runtime.sessions.base import Session
from trtllm_dflash.runtime.step_times import StepPlan, StepTimes

CANDIDATES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)  # widths, of those that a block has
_LEAST_LOSS = 0.05  # of a step, that a trial is taken to lose
_TRIAL_SHARE = 0.01  # of all time, that trials may lose


def candidate_widths(config: EngineConfig, session: Session) -> list[int]:
    """Return the widths to choose from, as the session runs them; the engine's own is the first."""
    own = session.step_width(1 + config.draft_len)
    widths = [session.step_width(width) for width in CANDIDATES if width <= config.block_size]
    return list(dict.fromkeys([own, *widths]))


class DraftLenChooser:
    """Chooses an engine's decode steps; it learns as long as the engine is loaded."""

    def __init__(
        self, block_size: int, widths: Sequence[int], *, may_skip: bool = False
    ) -> None:
        """Take the block and the widths that steps may have, the first of which begins.

        `may_skip`: steps without the drafter's block cost less.
        """
        self.overall = Acceptance(block_size)
        self._block_size = block_size
        self._widths = tuple(widths)
        self._places = np.array(self._widths) - 1
        self._may_skip = may_skip
        self._times: dict[int, StepTimes] = defaultdict(StepTimes)
        self._verifies_trial = False  # the next blocks are of a drafter that is tried

    def plan_for(self, requests: Sequence[Request]) -> StepPlan:
        """Return the next step of these sequences.

        Its width is the largest that one asks for, and the drafter drafts if it does for one.
        """
        batch = len(requests)
        open_ones = [request for request in requests if request.widths.is_auto]
        width, draft = 1, not self._may_skip
        if open_ones:
            width, draft = self._choose(batch, open_ones)
        for request in requests:
            if not request.widths.is_auto:
                asked = request.widths.width_for(batch)
                width = max(width, asked)
                draft |= asked > 1 and request.allows_drafter
        plan = StepPlan(width, draft)
        self._times[batch].note_run(plan)
        return plan

    def note_time(self, batch: int, plan: StepPlan, seconds: float) -> None:
        """Take in what a step took."""
        self._times[batch].note_time(plan, seconds)

    def _choose(self, batch: int, requests: Sequence[Request]) -> StepPlan:
        """Return the step for those that leave it open."""
        times = self._times[batch]
        for request in requests:
            if request.acceptance is None:
                request.acceptance = Acceptance(self._block_size, self.overall)
        if not times.is_known:
            drafters = any(request.allows_drafter for request in requests)
            return StepPlan(self._widths[0], drafters or not self._may_skip)
        return self._best_or_trial(times, requests)

    def _best_or_trial(self, times: StepTimes, requests: Sequence[Request]) -> StepPlan:
        ways = {draft: self._way(times, requests, draft) for draft in self._drafts(requests)}
        draft = max(ways, key=lambda one: ways[one].rate)
        rate = ways[draft].rate
        tokens = _tokens_now(requests)
        plans = [StepPlan(width, one) for one in ways for width in self._widths]
        gains = {plan: tokens[plan.width - 1] - rate * times.seconds(plan) for plan in plans}
        # What the drafter's block is worth does not show in its own step.
        best = max((plan for plan in gains if plan.draft == draft), key=lambda p: gains[p])
        if self._verifies_trial:
            self._verifies_trial = False
            several = [plan for plan in gains if plan.draft == draft and plan.width > 1]
            return max(several, key=lambda plan: gains[plan], default=best)
        allowed = {
            plan: times.allowance(plan) * _TRIAL_SHARE / len(gains)
            for plan in sorted(gains, key=lambda plan: times.last_run.get(plan, -1.0))
            if plan != best
        }
        least_loss = _LEAST_LOSS * times.seconds(best)
        lost_next: float | None = None
        for plan, loss_allowed in allowed.items():
            if loss_allowed < least_loss:
                continue
            changes = plan.draft != draft
            if changes and lost_next is None:
                lost_next = self._lost_next(times, ways, draft, len(requests))
            lost = gains[best] - gains[plan] + (lost_next or 0.0) * changes
            if lost / rate <= loss_allowed:
                self._verifies_trial = plan.draft and not draft
                return plan
        return best

    def _lost_next(
        self, times: StepTimes, ways: Mapping[bool, _Way], draft: bool, num_requests: int
    ) -> float:
        """Return the tokens that the next step loses behind a trial of the other way.

        `draft` tells whether the drafter drafts in the steps that seem best. If it does not, the
        next step verifies what it drafts in the trial.
        """
        rate = ways[draft].rate
        if draft:
            return max(0.0, ways[True].gain(rate) - ways[False].gain(rate))
        gains = ways[True].tokens - rate * ways[False].seconds
        several = [
            float(gain) for width, gain in zip(self._widths, gains, strict=True) if width > 1
        ]
        plain = num_requests - rate * times.seconds(StepPlan(1, False))
        return max(0.0, plain - max(several, default=plain))

    def _drafts(self, requests: Sequence[Request]) -> list[bool]:
        """Return whether the drafter may draft, may not, or both."""
        if not self._may_skip:
            return [True]
        drafters = any(request.allows_drafter for request in requests)
        return [False, True] if drafters else [False]

    def _way(self, times: StepTimes, requests: Sequence[Request], draft: bool) -> _Way:
        """Return what steps give that all draft, or all do not."""
        shares, tokens = _outlook(requests, draft)
        seconds = np.array([times.seconds(StepPlan(width, draft)) for width in self._widths])
        return _Way(shares, tokens[:, self._places], seconds)


class _Way:
    """Steps that all let the drafter draft, or all do not, by their next blocks."""

    def __init__(self, shares: Float64, tokens: Float64, seconds: Float64) -> None:
        """Take the cases of next blocks, and the steps' times.

        `shares` [C] of the cases, the `tokens` [C, W] expected of them by width, and `seconds` [W].
        """
        self.tokens = shares @ tokens  # expected of all cases, by width
        self.seconds = seconds
        self._shares = shares
        self._by_case = tokens
        self.rate = self._best_rate()

    def _best_rate(self) -> float:
        """Return the tokens a second.

        The width of a single sequence's step can follow what its block promises. With more of them
        it is taken to be the same in all steps.
        """
        rate = float(np.max(self.tokens / self.seconds))
        cases = np.arange(len(self._shares))
        for _ in range(2):  # the best ratio of two sums, by Dinkelbach's method
            chosen = np.argmax(self._by_case - rate * self.seconds, axis=1)
            gained = self._shares @ self._by_case[cases, chosen]
            rate = float(gained / (self._shares @ self.seconds[chosen]))
        return rate

    def gain(self, rate: float) -> float:
        """Return the tokens that the next step gains, with its best width, beside `rate`."""
        gained = self._by_case - rate * self.seconds
        return float(self._shares @ gained.max(axis=1))


def _outlook(requests: Sequence[Request], draft: bool) -> tuple[Float64, Float64]:
    """Return cases of next blocks: their shares [C], and the tokens expected of them [C, T]."""
    found = []
    for request in requests:
        assert request.acceptance is not None
        tokens = request.acceptance.of_next(request.sampling.draft_sources, draft=draft)
        found.append((request.acceptance.shares(), tokens))
    if len(found) == 1 and not requests[0].num_steps_in_flight:
        return found[0]
    total = np.sum([shares @ tokens for shares, tokens in found], axis=0)
    return np.ones(1), total[np.newaxis]


def _tokens_now(requests: Sequence[Request]) -> Float64:
    """Return the tokens [T] that steps of each width give with the blocks at hand.

    The block of a sequence with a step in flight is not known: one as they mostly are.
    """
    total: Float64 = np.zeros(1)
    for request in requests:
        acceptance, sources = request.acceptance, request.sampling.draft_sources
        assert acceptance is not None
        if request.num_steps_in_flight:
            found = acceptance.shares() @ acceptance.of_next(sources, draft=True)
        else:
            found = acceptance.of_block(request.next_class, sources)
        total = total + found
    return total
