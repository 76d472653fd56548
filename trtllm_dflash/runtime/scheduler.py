"""The decode loop: requests enter and leave between steps, prompts run in chunks, all active slots
generate together.

    waiting ──► prefilling (a chunk of one slot a step) ──► active slots 0 … n-1 ──generation steps──► finished
                                                                │  the last active slot moves into
                                                                └  the place of one that has ended

Active slots are always the first n, so a step never computes a row that nobody waits for; a prompt
runs in a slot behind them. With a token budget, at most so many prompt tokens run between two
generation steps, so that sequences that generate keep their pace, and a short prompt may overtake a
longer one that is still running. Without one, prompts go first, which fills the slots soonest.

Where the session looks ahead, the next step is under way before the last one's tokens are read, so
that the device never waits for the host. A sequence that turns out to have ended is then computed
once more in vain; its row is dropped. Slots are opened and moved only while no step is under way.

What a sequence gets depends on its own tokens and uniforms only: uniforms are indexed by the
position of the token that they decide, and every decided token is the target's own choice. Hence
drafts, batches, chunks, neighbours and looking ahead never change tokens. A generation step has one
width, that of the row that wants most drafts verified; a row that asked for fewer gets the same
tokens, in fewer steps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import NamedTuple

from trtllm_dflash.runtime.outputs import FinishReason, Timings
from trtllm_dflash.runtime.request import Request
from trtllm_dflash.runtime.sequence import ActiveSequence, Update
from trtllm_dflash.runtime.sessions.base import Session

# Chunks of a prompt while nobody generates, in budgets: wide enough to be quick, short enough to be
# overtaken soon.
BUDGETS_ALONE = 4


@dataclass
class _Step:
    """A step under way: a prompt's chunk, or a generation step whose row i is sequence i."""

    sequences: list[ActiveSequence]
    width: int
    started: float
    is_prompt: bool
    decides: bool = True  # a chunk that is not its prompt's last decides nothing that is wanted


class Step(NamedTuple):
    """One generation step: the slots that it ran, their width, its time (`Timings`), and what came
    of it.
    """

    slots: int
    width: int
    seconds: float
    tokens: int  # kept, all sequences together


class Scheduler:
    """Runs requests on a session, which nobody else may use meanwhile.

    Iterate over it to run all of them to their ends; or call `step` again and again while `busy`,
    and `add` and `end` in between. Not thread-safe.
    """

    def __init__(
        self,
        session: Session,
        requests: Iterable[Request] = (),
        *,
        prompt_tokens_per_step: int | None = None,
        slots: int | None = None,
        on_step: Callable[[Step], None] | None = None,
    ) -> None:
        """`prompt_tokens_per_step`: the budget of prompt tokens between two generation steps; None:
        prompts go first.

        `slots`: use no more of the session's; `on_step` is called with every generation step that
        gave a token.
        """
        self.timings = Timings()
        self._session = session
        self._slots = min(slots or session.max_batch_size, session.max_batch_size)
        self._on_step = on_step
        self._budget = prompt_tokens_per_step
        self._credit = (
            prompt_tokens_per_step or 0
        )  # what is left of the budget until the next generation step
        self._waiting = deque(ActiveSequence(request) for request in requests)
        self._prefilling: list[
            ActiveSequence
        ] = []  # the last one's turn it is; it has overtaken those before it
        self._active: list[ActiveSequence] = []  # the sequence in slot i is entry i
        self._under_way: deque[_Step] = deque()
        self._collected = 0.0  # when the last step's tokens were there

    def __iter__(self) -> Iterator[Update]:
        self.discard()
        while self.busy:
            yield from self.step()

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._waiting or self._prefilling or self._active or self._under_way)

    @property
    def waiting(self) -> list[ActiveSequence]:
        """Those that have no slot yet, and for which no step has done anything."""
        return list(self._waiting)

    @property
    def in_slots(self) -> list[ActiveSequence]:
        """The sequences that hold a slot."""
        return [*self._active, *self._prefilling]

    def discard(self) -> None:
        """Forget what a stream that was closed early, or that failed, has left under way in the
        session.
        """
        self._session.discard()

    def add(self, request: Request) -> ActiveSequence:
        """Let a request wait for a slot."""
        sequence = ActiveSequence(request)
        self._waiting.append(sequence)
        return sequence

    def end(self, sequence: ActiveSequence, reason: FinishReason) -> None:
        """End a sequence early, wherever it is: it gets no more tokens, and its slot is free from
        the next step on.
        """
        if sequence.finish_reason is None:
            sequence.finish_reason = reason
            if sequence.slot is None:
                self._waiting.remove(sequence)

    def step(self) -> list[Update]:
        """Bring the slots in order if nothing is under way, put under way what pays, and wait for
        the oldest step.
        """
        if not self._under_way:
            self._compact_slots()
        while (
            len(self._under_way) <= self._session.lookahead
            and self._slots_are_stable()
            and self._enqueue_step()
        ):
            pass
        return self._collect() if self._under_way else []

    def _slots_are_stable(self) -> bool:
        """Whether the next step may come before any slot is opened, moved or given up."""
        out_of_place = any(
            sequence.token_ids or sequence.finish_reason for sequence in self._prefilling
        )
        ended = any(sequence.finish_reason for sequence in self._active)
        return not (out_of_place or ended or self._next_admission() is not None)

    def _compact_slots(self) -> None:
        # From the last slot down, so that the sequence moved into a free slot is never itself
        # finished.
        for slot in reversed(range(len(self._active))):
            if self._active[slot].finish_reason is not None:
                last = self._active.pop()
                if slot < len(self._active):
                    self._move(last, slot)
                    self._active[slot] = last
        self._prefilling = [
            sequence for sequence in self._prefilling if sequence.finish_reason is None
        ]
        while self._prefilling and self._prefilling[-1].token_ids:
            self._activate(self._prefilling.pop())
        admitted = self._next_admission()
        if admitted is not None:
            self._admit(admitted)

    def _activate(self, sequence: ActiveSequence) -> None:
        """Let a sequence whose prompt has run generate with the others."""
        if sequence.slot != len(self._active):
            self._move(sequence, len(self._active))
        self._active.append(sequence)

    def _move(self, sequence: ActiveSequence, slot: int) -> None:
        assert sequence.slot is not None
        self._session.move_slot(sequence.slot, slot)
        sequence.slot = slot

    def _next_admission(self) -> ActiveSequence | None:
        """The waiting request that may have a slot now, if there is one."""
        if not self._waiting or len(self._active) + len(self._prefilling) == self._slots:
            return None
        if not self._prefilling:
            return self._waiting[0]
        if self._budget is None:
            return None
        return next(
            (sequence for sequence in self._waiting if self._may_preempt_prefill(sequence)), None
        )

    def _may_preempt_prefill(self, sequence: ActiveSequence) -> bool:
        """Whether a prompt is short enough to go before those that run: it delays none of them to
        more than twice its own length, however many overtake it.
        """
        length = sequence.remaining_prompt_tokens
        return all(
            length < other.remaining_prompt_tokens
            and length + other.overtaken <= len(other.request.input_ids)
            for other in self._prefilling
        )

    def _admit(self, sequence: ActiveSequence) -> None:
        """Open the slot in which the sequence will generate, unless others end first.

        Those that it overtakes go to the last slots, the first of them to the very last: whoever's
        turn it is is then always in the lowest slot of those that prompt, so that the next active
        slot is free for it.
        """
        start = perf_counter()
        for place, other in enumerate(self._prefilling):
            other.overtaken += sequence.remaining_prompt_tokens
            last = self._slots - 1 - place
            if other.slot != last:
                self._move(other, last)
        self._waiting.remove(sequence)
        slot = len(self._active)
        self._session.open_slot(slot, sequence.request.sampling)
        sequence.slot, sequence.admitted = slot, start
        self._prefilling.append(sequence)
        sequence.prefill_seconds = perf_counter() - start
        self.timings.prefill_seconds += sequence.prefill_seconds

    def _enqueue_step(self) -> bool:
        """Put the next step under way, if one pays: a prompt's chunk within the budget, else a
        generation step.
        """
        prefilling = next(
            (
                sequence
                for sequence in reversed(self._prefilling)
                if sequence.remaining_prompt_tokens
            ),
            None,
        )
        if prefilling is not None and (width := self._chunk_width(prefilling)):
            self._enqueue_prefill(prefilling, width)
        elif self._prefilling and self._budget is None:
            return False  # prompts go first: its sequence will generate with the others
        elif any(sequence.needs_more_steps for sequence in self._active):
            self._enqueue_decode()
        else:
            return False
        return True

    def _chunk_width(self, sequence: ActiveSequence) -> int:
        width = min(sequence.remaining_prompt_tokens, self._session.max_num_tokens)
        if self._budget is None:
            return width
        return min(width, self._credit if self._active else BUDGETS_ALONE * self._budget)

    def _enqueue_prefill(self, sequence: ActiveSequence, width: int) -> None:
        assert sequence.slot is not None
        start, begin = perf_counter(), sequence.num_prefilled
        self._session.prefill(sequence.slot, sequence.request.input_ids[begin : begin + width])
        sequence.num_prefilled += width
        self._under_way.append(
            _Step(
                [sequence],
                width,
                start,
                is_prompt=True,
                decides=not sequence.remaining_prompt_tokens,
            )
        )
        self._credit = max(0, self._credit - width)

    def _enqueue_decode(self) -> None:
        width = max(
            sequence.request.widths.width_for(len(self._active)) for sequence in self._active
        )
        step = _Step(list(self._active), width, perf_counter(), is_prompt=False)
        self._session.decode(len(self._active), width)
        self._under_way.append(step)
        for sequence in self._active:
            sequence.steps_under_way += 1
        self._credit = self._budget or 0

    def _collect(self) -> list[Update]:
        result = self._session.collect()
        now = perf_counter()
        step = self._under_way.popleft()
        seconds = now - max(step.started, self._collected)
        self._collected = now
        if step.is_prompt:
            return self._after_chunk(step, int(result.new_ids[0, 0]), seconds)
        rows = [result.new_ids[row, :count].tolist() for row, count in enumerate(result.num_new)]
        return self._after_generation(step, rows, seconds)

    def _after_chunk(self, step: _Step, token_id: int, seconds: float) -> list[Update]:
        (sequence,) = step.sequences
        sequence.prefill_seconds += seconds
        self.timings.prefill_seconds += seconds
        self.timings.prompt_tokens += step.width
        if not step.decides or sequence.finish_reason is not None:
            return []
        update = Update(sequence, sequence.commit([token_id]))
        if sequence.finish_reason is None and sequence.slot == len(self._active):
            self._prefilling.remove(sequence)
            self._activate(sequence)  # nothing moves, so that steps may be under way
        return [update]

    def _after_generation(self, step: _Step, rows: list[list[int]], seconds: float) -> list[Update]:
        updates = []
        for sequence, token_ids in zip(step.sequences, rows, strict=True):
            sequence.steps_under_way -= 1
            if sequence.finish_reason is not None:
                continue  # ended when this step was already under way
            kept = sequence.commit(token_ids)
            sequence.acceptance_lengths.append(len(kept))
            sequence.num_draft_tokens += step.width - 1
            sequence.decode_seconds += seconds
            updates.append(Update(sequence, kept))
        self.timings.decode_seconds += seconds
        self.timings.decode_steps += bool(updates)
        tokens = sum(len(update.token_ids) for update in updates)
        self.timings.generated_tokens += tokens
        if self._on_step is not None and updates:
            self._on_step(Step(len(step.sequences), step.width, seconds, tokens))
        return updates
