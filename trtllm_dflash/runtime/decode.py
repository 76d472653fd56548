"""The decode loop: requests wait for slots, prompts enter in chunks, and all active slots generate together.

    waiting ──prompt chunks (one slot)──► active slots 0 … n-1 ──generation step (all of them)──► finished
       ▲                                        │  a slot that finishes is refilled from the queue,
       └────────────────────────────────────────┘  else the last active slot moves into it

Active slots are always the first n, so a step never computes a row that nobody waits for.

Where the session looks ahead, the next generation step is under way before the last one's tokens are read, so that the
device never waits for the host. A sequence that turns out to have ended is then computed once more in vain; its row is
dropped. Before a slot is refilled or moved, no step is under way.

What a sequence gets depends on its own tokens and uniforms only: uniforms are indexed by the position of the token that
they decide, and every decided token is the target's own choice. Hence drafts, batches, chunks, refills and looking
ahead never change tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from time import perf_counter
from typing import NamedTuple

from trtllm_dflash.runtime.requests import Request, StepWidths
from trtllm_dflash.runtime.results import FinishReason, Timings
from trtllm_dflash.runtime.session import Session


class ActiveSequence:
    """A request on its way, and its new tokens so far."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.token_ids: list[int] = []
        self.acceptance_lengths: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.prompt_seconds = 0.0
        self.generation_seconds = 0.0

    @property
    def room(self) -> int:
        """How many more tokens it may get."""
        return self.request.max_new_tokens - len(self.token_ids)

    def commit(self, token_ids: list[int]) -> list[int]:
        """Append what a step decided, cut after a stop token and at the limit, and return the tokens kept."""
        room = self.room
        kept = token_ids[:room]
        stop = next((place for place, token in enumerate(kept) if token in self.request.stop_token_ids), None)
        if stop is not None:
            kept = kept[: stop + 1]
            self.finish_reason = "stop"
        elif len(kept) == room:
            self.finish_reason = "length"
        self.token_ids += kept
        return kept


class Update(NamedTuple):
    """Tokens that a sequence has just gained."""

    sequence: ActiveSequence
    token_ids: list[int]


class Step(NamedTuple):
    """One generation step: the slots that it ran, their width, its time (`Timings`), and what came of it."""

    slots: int
    width: int
    seconds: float
    tokens: int  # kept, all sequences together


class DecodeLoop:
    """Runs requests on a session, which nobody else may use meanwhile; iterate over it once."""

    def __init__(
        self,
        session: Session,
        requests: Iterable[Request],
        widths: StepWidths,
        *,
        slots: int | None = None,
        on_step: Callable[[Step], None] | None = None,
    ) -> None:
        """`slots`: use no more of the session's; `on_step` is called with every step that gave a token."""
        self.timings = Timings()
        self._session = session
        self._waiting = deque(requests)
        self.widths = widths
        self._slots = min(slots or session.max_batch_size, session.max_batch_size)
        self._on_step = on_step
        self._active: list[ActiveSequence] = []  # the sequence in slot i is entry i
        self._under_way: deque[float] = deque()  # generation steps: when each was put under way
        self._collected = 0.0  # when the last one's tokens were there

    def __iter__(self) -> Iterator[Update]:
        self._session.discard()  # what a stream that was closed early, or that failed, has left under way
        while self._waiting or self._active:
            while self._waiting and len(self._active) < self._slots:
                admitted = yield from self._admit(slot=len(self._active))
                self._active += [admitted] if admitted else []
            if self._active:
                yield from self._generate_until_one_ends()
                yield from self._release_finished()

    def _admit(self, slot: int) -> Generator[Update, None, ActiveSequence | None]:
        """Run waiting prompts in `slot` until one wants to go on; return it, or None when none is left."""
        while self._waiting:
            sequence = ActiveSequence(self._waiting.popleft())
            first = self._run_prompt(sequence, slot)
            yield Update(sequence, sequence.commit(first))
            if sequence.finish_reason is None:
                return sequence
        return None

    def _run_prompt(self, sequence: ActiveSequence, slot: int) -> list[int]:
        start = perf_counter()
        session, prompt_ids = self._session, sequence.request.prompt_ids
        session.open_slot(slot, sequence.request.sampling)
        for begin in range(0, len(prompt_ids), session.max_num_tokens):
            session.prompt(slot, prompt_ids[begin : begin + session.max_num_tokens])
            result = session.collect()
        sequence.prompt_seconds = perf_counter() - start
        self.timings.prompt_tokens += len(prompt_ids)
        self.timings.prompt_seconds += sequence.prompt_seconds
        return [int(result.new_ids[0, 0])]

    def _generate_until_one_ends(self) -> Iterator[Update]:
        """Step all active slots until a sequence of theirs has ended and no step is under way."""
        ended = False
        while self._under_way or not ended:
            while not ended and len(self._under_way) <= self._session.lookahead and self._another_step_pays():
                self._under_way.append(perf_counter())
                self._session.generate(len(self._active), self.widths.of(len(self._active)))
            yield from self._collect()
            ended = any(sequence.finish_reason is not None for sequence in self._active)

    def _another_step_pays(self) -> bool:
        """Whether a sequence may still want tokens after those under way, each of which brings at least one."""
        return any(sequence.room > len(self._under_way) for sequence in self._active)

    def _collect(self) -> list[Update]:
        result = self._session.collect()
        now = perf_counter()
        seconds = now - max(self._under_way.popleft(), self._collected)
        self._collected = now
        updates = []
        for row, sequence in enumerate(self._active):
            if sequence.finish_reason is not None:
                continue  # ended in the step before, when this one was already under way
            kept = sequence.commit(result.new_ids[row, : result.num_new[row]].tolist())
            sequence.acceptance_lengths.append(len(kept))
            sequence.generation_seconds += seconds
            updates.append(Update(sequence, kept))
        self.timings.generation_seconds += seconds
        self.timings.generation_steps += bool(updates)
        tokens = sum(len(update.token_ids) for update in updates)
        self.timings.generated_tokens += tokens
        if self._on_step is not None and updates:
            self._on_step(Step(len(self._active), self.widths.of(len(self._active)), seconds, tokens))
        return updates

    def _release_finished(self) -> Iterator[Update]:
        # From the last slot down, so that the one moved into a free slot is never itself finished.
        for slot in reversed(range(len(self._active))):
            if self._active[slot].finish_reason is None:
                continue
            refill = yield from self._admit(slot)
            if refill is not None:
                self._active[slot] = refill
                continue
            last = self._active.pop()
            if slot < len(self._active):
                self._session.move_slot(len(self._active), slot)
                self._active[slot] = last
