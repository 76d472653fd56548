"""The decode loop: requests wait for slots, prompts enter in chunks, and all active slots generate together.

    waiting ──prompt chunks (one slot)──► active slots 0 … n-1 ──generation step (all of them)──► finished
       ▲                                        │  a slot that finishes is refilled from the queue,
       └────────────────────────────────────────┘  else the last active slot moves into it

Active slots are always the first n, so a step never computes a row that nobody waits for.

What a sequence gets depends on its own tokens and uniforms only: uniforms are indexed by the position of the token that
they decide, and every decided token is the target's own choice. Hence drafts, batches, chunks and refills never change
tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from time import perf_counter
from typing import NamedTuple

import numpy as np

from trtllm_dflash.runtime.requests import Request
from trtllm_dflash.runtime.results import FinishReason, Timings
from trtllm_dflash.runtime.session import Int64, Session, StepInputs, StepOutputs


class ActiveSequence:
    """A request on its way: its new tokens so far, and what its next step needs."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.token_ids: list[int] = []
        self.acceptance_lengths: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.past_len = 0
        self.next_ids: Int64 = np.empty(0, np.int64)  # [block]: the anchor and the drafts after it
        self.prompt_seconds = 0.0
        self.generation_seconds = 0.0

    def commit(self, token_ids: list[int]) -> list[int]:
        """Append what a step decided, cut after a stop token and at the limit, and return the tokens kept."""
        room = self.request.max_new_tokens - len(self.token_ids)
        kept = token_ids[:room]
        stop = next((place for place, token in enumerate(kept) if token in self.request.stop_token_ids), None)
        if stop is not None:
            kept = kept[: stop + 1]
            self.finish_reason = "stop"
        elif len(kept) == room:
            self.finish_reason = "length"
        self.token_ids += kept
        return kept

    def advance(self, outputs: StepOutputs, row: int) -> None:
        """Take over the positions and the next block that a step gave this sequence in `row`."""
        self.past_len = int(outputs.next_len[row])
        self.next_ids = outputs.next_ids[row]


class Update(NamedTuple):
    """Tokens that a sequence has just gained."""

    sequence: ActiveSequence
    token_ids: list[int]


class DecodeLoop:
    """Runs requests on a session, which nobody else may use meanwhile; iterate over it once."""

    def __init__(self, session: Session, requests: Iterable[Request], width: int) -> None:
        """`width`: tokens of each slot in a generation step (1 + drafts to verify)."""
        self.timings = Timings()
        self._session = session
        self._waiting = deque(requests)
        self.width = width
        self._active: list[ActiveSequence] = []  # the sequence in slot i is entry i

    def __iter__(self) -> Iterator[Update]:
        while self._waiting or self._active:
            while self._waiting and len(self._active) < self._session.max_batch_size:
                admitted = yield from self._admit(slot=len(self._active))
                self._active += [admitted] if admitted else []
            if self._active:
                yield from self._generate()
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
        prompt_ids = sequence.request.prompt_ids
        for begin in range(0, len(prompt_ids), self._session.max_num_tokens):
            chunk = prompt_ids[begin : begin + self._session.max_num_tokens]
            outputs = self._session.step(
                _step_inputs([sequence], slot, chunk[np.newaxis], num_known=len(chunk), rows=1)
            )
            sequence.advance(outputs, row=0)
        sequence.prompt_seconds = perf_counter() - start
        self.timings.prompt_tokens += len(prompt_ids)
        self.timings.prompt_seconds += sequence.prompt_seconds
        return [int(outputs.new_ids[0, 0])]

    def _generate(self) -> Iterator[Update]:
        start = perf_counter()
        input_ids = np.stack([sequence.next_ids[: self.width] for sequence in self._active])
        inputs = _step_inputs(self._active, 0, input_ids, num_known=1, rows=self.width)
        outputs = self._session.step(inputs)
        updates = []
        for row, sequence in enumerate(self._active):
            sequence.advance(outputs, row)
            kept = sequence.commit(outputs.new_ids[row, : outputs.num_new[row]].tolist())
            sequence.acceptance_lengths.append(len(kept))
            updates.append(Update(sequence, kept))
        seconds = perf_counter() - start
        for sequence in self._active:
            sequence.generation_seconds += seconds
        self.timings.generation_seconds += seconds
        self.timings.generation_steps += 1
        self.timings.generated_tokens += sum(len(update.token_ids) for update in updates)
        yield from updates

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
                self._session.move_slot(len(self._active), slot, rows=last.past_len)
                self._active[slot] = last


def _step_inputs(
    sequences: list[ActiveSequence], first_slot: int, input_ids: Int64, *, num_known: int, rows: int
) -> StepInputs:
    """One step's inputs; row r's uniform decides the sequence's new token number len(token_ids) + r."""
    requests = [sequence.request for sequence in sequences]
    uniforms = [s.request.uniforms[len(s.token_ids) : len(s.token_ids) + rows] for s in sequences]
    return StepInputs(
        first_slot=first_slot,
        input_ids=input_ids,
        num_known=np.full(len(sequences), num_known, np.int32),
        past_len=np.array([sequence.past_len for sequence in sequences], np.int32),
        temperature=np.array([request.temperature for request in requests], np.float32),
        top_p=np.array([request.top_p for request in requests], np.float32),
        top_k=np.array([request.top_k for request in requests], np.int32),
        uniforms=np.stack(uniforms),
    )
