"""The scheduler: which step comes next, and which request has which slot.

    waiting ──► prefilling (a chunk of one slot a step) ──► active slots 0 … n-1 ──► finished
                                                   │ the last active slot moves into
                                                   └ the place of one that has ended

Active slots are always the first n, so that a step computes no unused row. A prompt is prefilled in
a slot behind them. Of those that wait, the smallest priority comes first, and among equals the
first that came.

With a token budget, at most so many prompt tokens run between two decode steps, so that decoding
keeps its pace. A short prompt may then overtake a longer one. Without a budget, prompts go first,
which fills the slots soonest.

With lookahead, step n+1 is launched before the tokens of step n are read, so the GPU never waits
for the host. A finished sequence may run one extra step; its output is discarded. Slots are moved
only while no step is in flight. One that needs no move is opened behind the steps in flight.

A sequence's tokens depend on its own tokens and noise only. Noise belongs to the position of the
token that it decides, and every token is the target's own choice. Hence drafts, batches, chunks and
lookahead never change tokens. A decode step has one width: the largest that a row asks
for, or the next larger one of the session. Other rows get the same tokens in fewer steps.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from time import perf_counter
from typing import NamedTuple

from trtllm_dflash.errors import DFlashError, EngineError
from trtllm_dflash.runtime.admission import may_overtake, priority_of
from trtllm_dflash.runtime.draft_len_chooser import DraftLenChooser
from trtllm_dflash.runtime.grammar.constrained_steps import (
    constrain_decode,
    constrain_prefill,
    lookahead_of,
)
from trtllm_dflash.runtime.outputs import FinishReason, Timings
from trtllm_dflash.runtime.prefix_cache import NO_PREFIX_CACHE, NoPrefixCache, PrefixCache
from trtllm_dflash.runtime.request import Request, Update
from trtllm_dflash.runtime.scheduled_step import ScheduledStep
from trtllm_dflash.runtime.sessions.base import CALLER_BUG, Session, StepResult
from trtllm_dflash.runtime.step_times import StepPlan

# Chunks of a prompt while nothing decodes, in budgets: wide enough to be quick, short enough to be
# overtaken soon.
IDLE_BUDGETS = 4


class Step(NamedTuple):
    """One decode step: its slots, their width, its time (as in `Timings`), the tokens kept."""

    slots: int
    width: int
    seconds: float
    tokens: int  # of all sequences together


class Scheduler:
    """Runs requests on a session that has no other user meanwhile.

    Iterate over it to run all requests to their ends. Or call `step` while it is `busy`, with `add`
    and `end` in between. Not thread-safe.
    """

    def __init__(
        self,
        session: Session,
        requests: Iterable[Request] = (),
        *,
        vocab_size: int,
        prompt_tokens_per_step: int | None = None,
        slots: int | None = None,
        on_step: Callable[[Step], None] | None = None,
        prefix_cache: PrefixCache | NoPrefixCache = NO_PREFIX_CACHE,
        chooser: DraftLenChooser | None = None,
    ) -> None:
        """Prepare to run `requests`; nothing runs yet.

        vocab_size               tokens outside it are never taken from a step.
        prompt_tokens_per_step   budget of prompt tokens between two decode steps; None: no limit.
        slots                    use no more of the session's slots than these.
        on_step                  called with every decode step that gave a token.
        prefix_cache             finds what is known of prompts, and keeps it.
        chooser                  chooses widths for requests that leave them open; None: no drafts.
        """
        self.timings = Timings()
        self._session = session
        self._slots = min(slots or session.max_batch_size, session.max_batch_size)
        self._vocab_size = vocab_size
        self._on_step = on_step
        self._prefix_cache = prefix_cache
        self._chooser = chooser or DraftLenChooser(1, [1], may_skip=session.may_skip_drafter)
        self._budget = prompt_tokens_per_step
        self._credit = prompt_tokens_per_step or 0  # left of it until the next decode step
        self._waiting = sorted(requests, key=priority_of)
        self._prefilling: list[Request] = []  # the last one runs; it overtook those before it
        self._active: list[Request] = []  # entry i is in slot i
        self._in_flight: deque[ScheduledStep] = deque()
        self._num_steps = 0
        self._launching: list[Request] | None = None  # the requests of a step that is launched
        self._collected = 0.0  # when the last step's tokens were there

    def __iter__(self) -> Iterator[Update]:
        self.discard()
        while self.busy:
            yield from self.step()

    @property
    def busy(self) -> bool:
        """Tell whether there is anything to do."""
        return bool(self._waiting or self._prefilling or self._active or self._in_flight)

    @property
    def waiting(self) -> list[Request]:
        """Return the requests without a slot, for which no step has done anything yet."""
        return list(self._waiting)

    @property
    def in_slots(self) -> list[Request]:
        """Return the requests that hold a slot."""
        return [*self._active, *self._prefilling]

    def discard(self) -> None:
        """Discard the steps that an earlier stream, closed or failed, has left in the session."""
        self._session.discard()

    def add(self, request: Request) -> None:
        """Let a request wait for a slot, behind those of its priority."""
        insort(self._waiting, request, key=priority_of)

    def end(self, request: Request, reason: FinishReason) -> None:
        """End a request early: it gets no more tokens, and the next step frees its slot."""
        if request.finish_reason is None:
            request.finish_reason = reason
            if request.slot is None:
                self._waiting.remove(request)

    def end_at_stop_word(self, request: Request, num_dropped: int) -> None:
        """End a request before the last `num_dropped` tokens of its last step."""
        request.truncate(num_dropped)
        # The stop word comes first, whatever the last tokens of the block say.
        request.finish_reason = None
        self.end(request, "stop")

    def step(self) -> list[Update]:
        """Launch the steps that pay, wait for the oldest one, and return what it gave.

        Slots are compacted first if no step is in flight; if one is, a request may get the next
        slot. After an error, call `drop_failed` before the next step.

        Raises:
            EngineError: if a step's results cannot be right, or with what the session raises.
        """
        if not self._in_flight:
            self._compact_slots()
        elif self._next_slot_is_stable():
            self._admit(self._waiting[0])
        lookahead = lookahead_of(self._session, self.in_slots)
        while len(self._in_flight) <= lookahead and self._slots_are_stable():
            if not self._enqueue_step():
                break
        if self._in_flight:
            return self._collect()
        if self.busy and self._slots_are_stable():
            raise EngineError(f"no step can be launched for the requests left. {CALLER_BUG}")
        return []

    def drop_failed(self) -> list[Request]:
        """End the requests of a step that failed, and return them; the others can go on.

        They are those of a step that could not be launched, which has touched no other slot. After
        any other failure the slots are in doubt, and all requests in them end.
        """
        failed = self.in_slots if self._launching is None else list(self._launching)
        if self._launching is None:
            self._active.clear()
            self._prefilling.clear()
            self._in_flight.clear()
            self.discard()
        self._launching = None
        for request in failed:
            request.finish_reason = request.finish_reason or "cancelled"
        return failed

    def _slots_are_stable(self) -> bool:
        """Tell whether the next step may come before a slot is opened, moved or given up."""
        for request in self._prefilling:
            if request.output_ids or request.finish_reason:
                return False
        ended = any(request.finish_reason for request in self._active)
        return not ended and self._next_admission() is None

    def _next_slot_is_stable(self) -> bool:
        """Tell whether a waiting request may get the slot behind the active ones, with no move.

        Then steps may be in flight: none is of that slot, and no active one is given up below it.
        """
        ended = any(request.finish_reason for request in self._active)
        return not self._prefilling and not ended and self._next_admission() is not None

    def _compact_slots(self) -> None:
        # From the last slot down, so that what moves into a free slot is never itself finished.
        for slot in reversed(range(len(self._active))):
            if self._active[slot].finish_reason is not None:
                self._prefix_cache.after_answer(self._active[slot])
                last = self._active[-1]
                if slot < len(self._active) - 1:
                    self._move(last, slot)
                    self._active[slot] = last
                self._active.pop()  # only now: a move that fails must not lose its request
        self._prefilling = [
            request for request in self._prefilling if request.finish_reason is None
        ]
        while self._prefilling and self._prefilling[-1].output_ids:
            self._activate(self._prefilling[-1])
            self._prefilling.pop()
        admitted = self._next_admission()
        if admitted is not None:
            self._admit(admitted)

    def _activate(self, request: Request) -> None:
        """Let a request whose prompt has run decode with the others."""
        if request.slot != len(self._active):
            self._move(request, len(self._active))
        self._active.append(request)

    def _move(self, request: Request, slot: int) -> None:
        assert request.slot is not None
        self._session.move_slot(request.slot, slot)
        request.slot = slot

    def _next_admission(self) -> Request | None:
        """Return the waiting request that may have a slot now, if there is one."""
        in_use = len(self._active) + len(self._prefilling)
        if not self._waiting or in_use == self._slots:
            return None
        if not self._prefilling:
            return self._waiting[0]
        if self._budget is None:
            return None
        overtaking = (
            request for request in self._waiting if may_overtake(request, self._prefilling)
        )
        return next(overtaking, None)

    def _admit(self, request: Request) -> None:
        """Open the slot in which the request will decode, unless others end first.

        Those that it overtakes go to the last slots, the first of them to the very last. So the
        request that runs has the lowest of their slots, and the next active slot is free for it.
        """
        start = perf_counter()
        for place, other in enumerate(self._prefilling):
            other.num_overtaken += request.num_to_prefill
            last = self._slots - 1 - place
            if other.slot != last:
                self._move(other, last)
        self._waiting.remove(request)
        slot = len(self._active)
        request.slot = slot
        request.admitted = start
        self._prefilling.append(request)
        self._open_slot(slot, request)
        request.prefill_seconds = perf_counter() - start
        self.timings.prefill_seconds += request.prefill_seconds

    def _open_slot(self, slot: int, request: Request) -> None:
        prefix = self._prefix_cache.find(request.input_ids)
        if prefix is not None:
            request.num_cached = request.num_prefilled = prefix.length
        self._session.open_slot(slot, request.sampling, prefix)

    def _enqueue_step(self) -> bool:
        """Launch the next step if one pays: a chunk within the budget, else a decode step."""
        unfinished = [request for request in self._prefilling if request.num_to_prefill]
        width = self._chunk_width(unfinished[-1]) if unfinished else 0
        if width:
            self._enqueue_prefill(unfinished[-1], width)
        elif self._prefilling and self._budget is None:
            return False  # prompts go first: this one will decode with the others
        elif any(request.needs_more_steps for request in self._active):
            self._enqueue_decode()
        else:
            return False
        return True

    def _chunk_width(self, request: Request) -> int:
        width = min(request.num_to_prefill, self._session.max_num_tokens)
        width = self._prefix_cache.chunk_width(request.num_prefilled, width)
        if self._budget is None:
            return width
        if self._active:
            return min(width, self._credit)
        return min(width, IDLE_BUDGETS * self._budget)

    def _enqueue_prefill(self, request: Request, width: int) -> None:
        assert request.slot is not None
        start = perf_counter()
        begin = request.num_prefilled
        chunk = request.input_ids[begin : begin + width]
        self._launching = [request]
        is_last = width == request.num_to_prefill
        if is_last:
            constrain_prefill(self._session, request)
        self._session.prefill(request.slot, chunk, draft=is_last and request.allows_drafter)
        self._launching = None
        request.num_prefilled += width
        self._prefix_cache.after_chunk(request.slot, request.input_ids, request.num_prefilled)
        self._num_steps += 1
        step = ScheduledStep([request], width, start, self._num_steps, is_prefill=True)
        step.decides, step.chunk_end = is_last, begin + width
        self._in_flight.append(step)
        self._credit = max(0, self._credit - width)

    def _enqueue_decode(self) -> None:
        width, draft = self._chooser.plan_for(self._active)
        width = constrain_decode(self._session, self._active, width)
        start = perf_counter()
        self._launching = active = list(self._active)
        self._session.decode(len(active), width, draft=draft)
        self._launching = None
        self._num_steps += 1
        self._in_flight.append(ScheduledStep(active, width, start, self._num_steps, draft))
        for request in self._active:
            request.num_steps_in_flight += 1
        self._credit = self._budget or 0

    def _collect(self) -> list[Update]:
        result = self._session.collect()
        now = perf_counter()
        step = self._in_flight.popleft()
        errors = step.check(result, self._vocab_size)
        seconds = now - max(step.started, self._collected)
        self._collected = now
        if step.is_prefill:
            return self._after_prefill(step, result, seconds, errors[0])
        return self._after_decode(step, result, seconds, errors)

    def _after_prefill(
        self,
        step: ScheduledStep,
        result: StepResult,
        seconds: float,
        error: EngineError | None,
    ) -> list[Update]:
        (request,) = step.requests
        request.prefill_seconds += seconds
        self.timings.prefill_seconds += seconds
        self.timings.prompt_tokens += step.width
        if not step.decides or request.finish_reason is not None:
            return []
        try:
            update = step.take(result, 0, error)
        except DFlashError as failure:
            return [self._fail(request, failure)]
        if request.finish_reason is None and request.slot == len(self._active):
            self._prefilling.remove(request)
            self._activate(request)  # nothing moves, so that steps may be in flight
        return [update]

    def _fail(self, request: Request, error: DFlashError) -> Update:
        """End a request that can have no next token."""
        self.end(request, "cancelled")
        return Update(request, [], error)

    def _after_decode(
        self,
        step: ScheduledStep,
        result: StepResult,
        seconds: float,
        errors: list[EngineError | None],
    ) -> list[Update]:
        updates = []
        self._chooser.note_time(len(step.requests), StepPlan(step.width, step.drafts), seconds)
        for row, (request, error) in enumerate(zip(step.requests, errors, strict=True)):
            request.num_steps_in_flight -= 1
            if request.finish_reason is not None:
                continue  # it ended when this step was already in flight
            try:
                updates.append(step.take(result, row, error))
            except DFlashError as failure:
                updates.append(self._fail(request, failure))
                continue
            request.decode_seconds += seconds
        self.timings.decode_seconds += seconds
        self.timings.decode_steps += bool(updates)
        tokens = sum(len(update.token_ids) for update in updates)
        self.timings.generated_tokens += tokens
        if self._on_step is not None and updates:
            self._on_step(Step(len(step.requests), step.width, seconds, tokens))
        return updates
