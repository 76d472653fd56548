"""A session without a model: the step's contract in NumPy, with a made-up target and drafter.

The target's distribution at a position is a hash of every token up to it, read from the fake's own cache: a loop that
feeds a wrong position, moves a slot incompletely or leaves a rejected token in place gets different tokens. The drafter
reads a cache of its own and proposes the target's most likely token with probability `accuracy`. Rows that a real step
leaves in an undefined state hold POISON here.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from trtllm_dflash.runtime.config import EngineConfig
from trtllm_dflash.runtime.session import Int64, StepInputs, StepOutputs

POISON = -7


def fake_config(*, block_size: int = 4, draft_len: int | None = None, **sizes: int) -> EngineConfig:
    """An engine configuration for the fake; sizes are pairwise different."""
    chosen = {
        "max_batch_size": 3,
        "max_input_len": 40,
        "max_seq_len": 90,
        "max_num_tokens": 5,
        "vocab_size": 23,
    } | sizes
    return EngineConfig(
        architecture="fake",
        eos_token_ids=(2,),
        arch="cpu",
        backend="fake",
        dtype="float32",
        cache_len=chosen["max_seq_len"] + 2 * block_size,
        block_size=block_size,
        draft_len=block_size - 1 if draft_len is None else draft_len,
        ports=(),
        **chosen,
    )


class FakeSession:
    """A `Session` that also checks every rule of the step's inputs and records the steps' shapes."""

    def __init__(self, config: EngineConfig, *, accuracy: float = 0.7) -> None:
        self.config = config
        self.accuracy = accuracy
        self.steps: list[tuple[int, int, int]] = []  # (first slot, batch, width)
        self.moves: list[tuple[int, int, int]] = []
        shape = (config.max_batch_size, config.cache_len)
        self.target_cache = np.full(shape, POISON)
        self.draft_cache = np.full(shape, POISON)

    @property
    def max_batch_size(self) -> int:
        return self.config.max_batch_size

    @property
    def max_num_tokens(self) -> int:
        return self.config.max_num_tokens

    def step(self, inputs: StepInputs) -> StepOutputs:
        self._check(inputs)
        batch, width = inputs.input_ids.shape
        self.steps.append((inputs.first_slot, batch, width))
        rows = [self._step_row(inputs, row) for row in range(batch)]
        next_ids, new_ids, num_new, next_len = zip(*rows, strict=True)
        return StepOutputs(
            np.stack(next_ids), np.stack(new_ids), np.array(num_new, np.int32), np.array(next_len, np.int32)
        )

    def move_slot(self, source: int, target: int, rows: int) -> None:
        self.moves.append((source, target, rows))
        for cache in (self.target_cache, self.draft_cache):
            cache[target] = POISON
            cache[target, :rows] = cache[source, :rows]
            cache[source] = POISON

    def _check(self, inputs: StepInputs) -> None:
        batch, width = inputs.input_ids.shape
        rows = inputs.uniforms.shape[1]
        assert 0 <= inputs.first_slot <= inputs.first_slot + batch <= self.config.max_batch_size
        assert 1 <= width <= max(self.config.max_num_tokens, self.config.block_size)
        assert 1 <= rows <= self.config.block_size
        assert inputs.input_ids.dtype == np.int64
        assert ((inputs.input_ids >= 0) & (inputs.input_ids < self.config.vocab_size)).all()
        assert ((inputs.num_known >= 1) & (inputs.num_known <= width)).all()
        assert ((inputs.uniforms >= 0) & (inputs.uniforms < 1)).all()
        for name, kind in {
            "num_known": "i4",
            "past_len": "i4",
            "temperature": "f4",
            "top_p": "f4",
            "top_k": "i4",
        }.items():
            array = getattr(inputs, name)
            assert array.shape == (batch,), name
            assert array.dtype == np.dtype(kind), name
        look_ahead = self.config.block_size if self.config.speculates else 0
        assert inputs.past_len.max() + width + look_ahead <= self.config.cache_len

    def _step_row(self, inputs: StepInputs, row: int) -> tuple[Int64, Int64, int, int]:
        slot = inputs.first_slot + row
        tokens, past, known = inputs.input_ids[row], int(inputs.past_len[row]), int(inputs.num_known[row])
        target, draft = self.target_cache[slot], self.draft_cache[slot]
        assert (target[:past] == draft[:past]).all(), "the two caches hold different sequences"
        assert (target[:past] != POISON).all(), "a position that no step wrote"
        target[past : past + len(tokens)] = tokens

        chosen: list[int] = []
        for uniform in inputs.uniforms[row]:
            place = past + known - 1 + len(chosen)
            logits = self._logits(target[: place + 1])
            chosen.append(choose(logits, inputs.temperature[row], inputs.top_k[row], inputs.top_p[row], uniform))
            drafts = tokens[known + len(chosen) - 1 :]
            if not len(drafts) or drafts[0] != chosen[-1]:
                break
        next_len = past + known + len(chosen) - 1
        draft[past : past + len(tokens)] = tokens
        draft[next_len:] = POISON
        draft[next_len : next_len + self.config.block_size] = POISON - 1
        new_ids = np.full(inputs.uniforms.shape[1], -1)
        new_ids[: len(chosen)] = chosen
        return self._draft(draft[:next_len], chosen[-1]), new_ids, len(chosen), next_len

    def _draft(self, context: Int64, anchor: int) -> Int64:
        tokens = [*context.tolist(), anchor]
        for _ in range(self.config.block_size - 1):
            draft = int(self._logits(tokens).argmax())
            wrong = np.random.default_rng(_hash(tokens) + 1).random() >= self.accuracy
            tokens.append((draft + 1) % self.config.vocab_size if wrong else draft)
        return np.array(tokens[len(context) :])

    def _logits(self, tokens: Sequence[int] | Int64) -> np.ndarray:
        return np.random.default_rng(_hash(tokens)).normal(size=self.config.vocab_size)


def _hash(tokens: Sequence[int] | Int64) -> int:
    return zlib.crc32(np.asarray(tokens, np.int64).tobytes())


def choose(logits: np.ndarray, temperature: float, top_k: int, top_p: float, uniform: float) -> int:
    """The target's token: argmax, or inverse-CDF at temperature → top-k → softmax → top-p, in vocabulary order."""
    if temperature == 0:
        return int(logits.argmax())
    order = np.argsort(-logits, kind="stable")
    weights = np.exp((logits - logits.max()) / temperature)
    weights[order[top_k or len(logits) :]] = 0
    weights /= weights.sum()
    before = np.cumsum(weights[order]) - weights[order]
    weights[order[before >= top_p]] = 0
    cumulative = np.cumsum(weights / weights.sum())
    return int(min((cumulative <= uniform).sum(), np.flatnonzero(weights)[-1]))


def plain_tokens(
    session: FakeSession,
    prompt: Sequence[int],
    count: int,
    uniforms: np.ndarray | None = None,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> list[int]:
    """The tokens that the fake target chooses one at a time: the oracle, which knows no loop."""
    tokens = list(prompt)
    for place in range(count):
        uniform = 0.0 if uniforms is None else float(uniforms[place])
        tokens.append(choose(session._logits(tokens), temperature, top_k, top_p, uniform))
    return tokens[len(prompt) :]
