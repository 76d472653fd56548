"""A session without a model: the step's contract in NumPy, with a fake target and drafter.

The target's distribution at a position is a hash of every token up to it, read from the fake's own
cache. A scheduler gets different tokens if it feeds a wrong position, moves a slot incompletely or
leaves a rejected token in place. The drafter reads a cache of its own and proposes the target's
most likely token with probability `accuracy`. Rows that a real step leaves undefined hold POISON.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from tests.fixtures.noise import noise
from tests.fixtures.sampling import SAMPLING_NAMES
from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.engine_dir.io_tensors import KEY_WORDS, IoTensor
from trtllm_dflash.runtime.sessions.base import Int32, Int64, SlotSampling, StepResult
from trtllm_dflash.runtime.sessions.slot_copy import Prefix, SlotCopy

POISON = -7


def fake_config(
    *,
    block_size: int = 4,
    draft_len: int | None = None,
    auto_draft_len: bool = False,
    model_type: str = "fake",
    **sizes: int,
) -> EngineConfig:
    """Return an engine configuration for the fake; sizes are pairwise different."""
    chosen = {
        "max_batch_size": 3,
        "max_input_len": 40,
        "max_seq_len": 90,
        "max_num_tokens": 5,
        "vocab_size": 23,
    } | sizes
    return EngineConfig(
        model_type=model_type,
        eos_token_ids=(2,),
        gpu_arch="cpu",
        backend="fake",
        dtype="float32",
        plugins=False,
        cache_len=chosen["max_seq_len"] + 3 * block_size,
        block_size=block_size,
        draft_len=block_size - 1 if draft_len is None else draft_len,
        auto_draft_len=auto_draft_len,
        io=tuple(IoTensor(name, "input", "", (), "") for name in SAMPLING_NAMES),
        **chosen,
    )


@dataclass
class Slot:
    """What a session keeps of a slot besides its caches."""

    sampling: SlotSampling
    past_len: int = 0
    state_len: int = 0
    next_ids: Int64 = field(default_factory=lambda: np.empty(0, np.int64))


class FakeSession:
    """A `Session` that also checks every rule of the calls and records the steps' shapes.

    Its steps are done at once, as a device would do them, and their results wait to be collected.
    """

    def __init__(
        self, config: EngineConfig, *, accuracy: float = 0.7, lookahead: int = 0
    ) -> None:
        self.config = config
        self.accuracy = accuracy
        self.lookahead = lookahead
        self.steps: list[tuple[int, int, int]] = []  # (first slot, batch, width)
        self.drafted: list[bool] = []  # whether the drafter drafted in each of them
        self.may_skip_drafter = True
        self.moves: list[tuple[int, int, int]] = []  # (src, dst, rows in use)
        self.max_in_flight = 0
        self.opened_in_flight = 0  # slots that were opened behind steps
        self.kept = 0
        self.room = 150  # positions of all copies
        self.in_flight: deque[StepResult] = deque()
        self.slots_in_flight: deque[range] = deque()
        self.slots: list[Slot | None] = [None] * config.max_batch_size
        shape = (config.max_batch_size, config.cache_len)
        self.target_cache = np.full(shape, POISON)
        self.draft_cache = np.full(shape, POISON)
        self.allowed: dict[int, Int32] = {}  # by slot, in its next step

    @property
    def max_batch_size(self) -> int:
        return self.config.max_batch_size

    @property
    def max_num_tokens(self) -> int:
        return self.config.max_num_tokens

    def open_slot(
        self, slot: int, sampling: SlotSampling, prefix: Prefix | None = None
    ) -> None:
        assert not any(slot in slots for slots in self.slots_in_flight)
        self.opened_in_flight += bool(self.in_flight)
        assert len(sampling.noise_key) == KEY_WORDS
        assert all(0 <= word < 2**31 for word in sampling.noise_key)
        self.slots[slot] = Slot(sampling)
        if prefix is None:
            return
        assert 0 < prefix.length <= prefix.copy.length
        caches = (self.target_cache, self.draft_cache)
        for cache, rows in zip(caches, prefix.copy.place, strict=True):
            cache[slot] = POISON
            cache[slot, : prefix.length] = rows[: prefix.length]
        self.slots[slot] = Slot(sampling, prefix.length, prefix.length)

    def save_slot(self, slot: int, length: int) -> SlotCopy | None:
        state = self.slots[slot]
        assert state is not None
        assert length <= state.past_len
        if length > self.room:
            return None
        self.room -= length
        rows = [cache[slot, :length].copy() for cache in (self.target_cache, self.draft_cache)]
        return SlotCopy(length, length, rows)

    def drop_copy(self, copy: SlotCopy) -> None:
        self.room += copy.nbytes

    def prefill(self, slot: int, input_ids: Int64, *, draft: bool = True) -> None:
        assert 1 <= len(input_ids) <= self.config.max_num_tokens
        assert input_ids.dtype == np.int64
        assert ((input_ids >= 0) & (input_ids < self.config.vocab_size)).all()
        self._run(slot, [input_ids], known=len(input_ids), rows=1, draft=draft)

    def step_width(self, width: int) -> int:
        return width

    def decode(self, count: int, width: int, *, draft: bool = True) -> None:
        assert 1 <= width <= self.config.block_size
        blocks = [state.next_ids[:width] for state in self.slots[:count] if state is not None]
        assert len(blocks) == count, "a slot that was not opened"
        assert all(len(block) == width for block in blocks), "a slot without a prompt"
        self._run(0, blocks, known=1, rows=width, draft=draft)

    def constrain(self, slot: int, allowed: Int32 | None, drafts: Int64 | None = None) -> None:
        state = self.slots[slot]
        assert state is not None
        assert not any(slot in slots for slots in self.slots_in_flight)
        if drafts is not None:
            assert drafts.dtype == np.int64
            state.next_ids[1 : 1 + len(drafts)] = drafts
        if allowed is not None:
            assert allowed.dtype == np.int32
            assert allowed.shape[1] == -(-self.config.vocab_size // 32)
            self.allowed[slot] = allowed

    def collect(self) -> StepResult:
        self.slots_in_flight.popleft()
        return self.in_flight.popleft()

    def keep(self) -> None:
        self.kept += 1

    def discard(self) -> None:
        self.in_flight.clear()
        self.slots_in_flight.clear()

    def move_slot(self, src: int, dst: int) -> None:
        assert not self.in_flight
        state = self.slots[src]
        assert state is not None
        rows = state.past_len
        self.moves.append((src, dst, rows))
        self.slots[dst] = state
        self.slots[src] = None
        for cache in (self.target_cache, self.draft_cache):
            cache[dst] = POISON
            cache[dst, :rows] = cache[src, :rows]
            cache[src] = POISON

    def _run(
        self, first: int, blocks: list[Int64], *, known: int, rows: int, draft: bool
    ) -> None:
        self.steps.append((first, len(blocks), len(blocks[0])))
        self.drafted.append(draft)
        results = [
            self._step_row(first + row, block, known, rows, draft)
            for row, block in enumerate(blocks)
        ]
        new_ids, num_new = zip(*results, strict=True)
        states = self.slots[first : first + len(blocks)]
        self.slots_in_flight.append(range(first, first + len(blocks)))
        lengths = [(s.past_len, s.state_len) for s in states if s is not None]
        next_len, next_state_len = np.array(lengths, np.int32).T
        drafts = None
        if any(state.sampling.wants_drafts for state in states if state is not None):
            drafts = np.stack([state.next_ids for state in states if state is not None])
        self.in_flight.append(
            StepResult(
                np.stack(new_ids),
                np.array(num_new, np.int32),
                next_len,
                next_state_len=next_state_len,
                next_ids=drafts,
            )
        )
        assert len(self.in_flight) <= self.lookahead + 1
        self.max_in_flight = max(self.max_in_flight, len(self.in_flight))

    def _step_row(
        self, slot: int, tokens: Int64, known: int, rows: int, is_drafted: bool
    ) -> tuple[Int64, int]:
        state = self.slots[slot]
        assert state is not None
        past = state.past_len
        sampling = state.sampling
        behind = self.config.block_size if self.config.speculates else 0
        assert past + len(tokens) + behind <= self.config.cache_len
        target = self.target_cache[slot]
        draft = self.draft_cache[slot]
        assert (target[:past] == draft[:past]).all(), "the two caches hold different sequences"
        assert (target[:past] != POISON).all(), "a position that no step wrote"
        target[past : past + len(tokens)] = tokens

        allowed = self.allowed.pop(slot, np.empty((0, 0), np.int32))
        chosen: list[int] = []
        for place in range(past + known, past + known + rows):
            logits = self._logits(target[:place])
            if len(chosen) < len(allowed):
                logits = masked(logits, allowed[len(chosen)])
            chosen.append(choose(logits, sampling, place))
            drafts = tokens[known + len(chosen) - 1 :]
            if not len(drafts) or drafts[0] != chosen[-1]:
                break
        state.past_len = past + known + len(chosen) - 1
        state.state_len = past + known
        draft[past : past + len(tokens)] = tokens
        draft[state.past_len :] = POISON
        draft[state.past_len : state.past_len + self.config.block_size] = POISON - 1
        state.next_ids = np.full(self.config.block_size, chosen[-1])
        if is_drafted:
            state.next_ids = self._draft(draft[: state.past_len], chosen[-1])
        new_ids = np.full(rows, -1)
        new_ids[: len(chosen)] = chosen
        return new_ids, len(chosen)

    def _draft(self, context: Int64, anchor: int) -> Int64:
        tokens = [*context.tolist(), anchor]
        for _ in range(self.config.block_size - 1):
            draft = int(self._logits(tokens).argmax())
            wrong = np.random.default_rng(_hash(tokens) + 1).random() >= self.accuracy
            tokens.append((draft + 1) % self.config.vocab_size if wrong else draft)
        return np.array(tokens[len(context) :])

    def _logits(self, tokens: Sequence[int] | Int64) -> np.ndarray:
        return np.random.default_rng(_hash(tokens)).normal(size=self.config.vocab_size)


def masked(logits: np.ndarray, mask: Int32) -> np.ndarray:
    """Return the logits of the tokens that a mask allows, and -inf for the others."""
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little")[: len(logits)]
    assert bits.any(), "a row that allows nothing"
    return np.where(bits, logits, -np.inf)


def _hash(tokens: Sequence[int] | Int64) -> int:
    return zlib.crc32(np.asarray(tokens, np.int64).tobytes())


def choose(logits: np.ndarray, sampling: SlotSampling, position: int) -> int:
    """Return the target's token at a position: argmax, or the best by the position's noise.

    Sampling applies temperature, top-k, softmax, top-p and min-p, in this order.
    """
    if sampling.temperature == 0:
        return int(logits.argmax())
    order = np.argsort(-logits, kind="stable")
    weights = np.exp((logits - logits.max()) / sampling.temperature)
    weights[order[sampling.top_k or len(logits) :]] = 0
    weights /= weights.sum()
    before = np.cumsum(weights[order]) - weights[order]
    weights[order[before >= sampling.top_p]] = 0
    weights[weights < sampling.min_p * weights.max()] = 0
    key = np.array(sampling.noise_key)
    with np.errstate(divide="ignore"):
        scores = np.log(weights) + noise(key, np.array([position]), np.arange(len(logits)))[0]
    return int(scores.argmax())


def plain_tokens(
    session: FakeSession, prompt: Sequence[int], count: int, sampling: SlotSampling
) -> list[int]:
    """Return the tokens that the fake target chooses one at a time, without a scheduler."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(choose(session._logits(tokens), sampling, len(tokens)))
    return tokens[len(prompt) :]
