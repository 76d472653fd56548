"""The systems of a profile: whatever answers prompts, measured with one clock.

The clock of an answer has two parts. The first runs from the start of the prompt's first step to
the first token. The second covers the decode steps in which the answer took part.
Not covered are loading, tokenizing, the wait for a free slot, and the time in which a batch waits
for another prompt's prefill.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from trtllm_dflash.options.draft_len import AUTO
from trtllm_dflash.options.draft_sources import DraftCount, DraftSource
from trtllm_dflash.options.sampling import SamplingParams
from trtllm_dflash.runtime.engine import Engine
from trtllm_dflash.runtime.scheduler import Step

InputIds = Sequence[int]


@dataclass(frozen=True)
class Answer:
    """A system's answer to one prompt.

    `acceptance_lengths` are as in `Generation`: all tokens but the first, by step.
    """

    token_ids: list[int]
    acceptance_lengths: list[int]
    first_token_seconds: float
    decode_seconds: float
    drafts_by_source: Mapping[DraftSource, DraftCount] = field(default_factory=dict)


@dataclass(frozen=True)
class BatchRun:
    """Answers to some prompts, their decode steps, and the time of all, prefill included."""

    answers: list[Answer]
    steps: list[Step]
    seconds: float


Run = Callable[[Sequence[InputIds], int, int], BatchRun]


@dataclass(frozen=True)
class System:
    """One way of decoding.

    `run(prompts, batch, max_tokens)` answers prompts, `batch` of them together. With
    `fixed_draft_len` every step has `draft_len` drafts, so that their acceptance rate is defined.
    With `auto` it has as many as pay.
    """

    name: str
    implementation: str  # dflash, plain, reference or huggingface
    draft_len: int  # drafts in a step, at most; 0: none
    run: Run
    batches: tuple[int, ...] | None = None  # supported batch sizes; None: all
    fixed_draft_len: bool = True
    drafts: str | None = None  # of this package's engines with drafts
    auto: bool = False

    def supports(self, batch: int) -> bool:
        """Return whether the system can answer `batch` prompts together."""
        return self.batches is None or batch in self.batches


def engine_system(
    name: str,
    implementation: str,
    engine: Engine,
    draft_len: int | str,
    *,
    seed: int,
    **sampling: Any,
) -> System:
    """Return an engine of this package as a system, with fixed options of `SamplingParams`.

    Each prompt has a seed of its own, derived from `seed` and its tokens. So it is answered alike
    in any round and batch.
    """

    def run(prompts: Sequence[InputIds], batch: int, max_tokens: int) -> BatchRun:
        steps: list[Step] = []
        seeds = [_seed_of(seed, prompt) for prompt in prompts]
        options = {**sampling, "seed": seeds, "draft_len": draft_len, "max_tokens": max_tokens}
        start = perf_counter()
        with engine.stream(prompts, slots=batch, on_step=steps.append, **options) as stream:
            generations = stream.generations()
        seconds = perf_counter() - start
        answers = [
            Answer(
                one.token_ids,
                one.acceptance_lengths,
                one.prefill_seconds,
                one.decode_seconds,
                one.drafts_by_source,
            )
            for one in generations
        ]
        return BatchRun(answers, steps, seconds)

    drafts = sampling.get("drafts") if draft_len else None
    if draft_len != AUTO:
        return System(name, implementation, int(draft_len), run, drafts=drafts)
    most = engine.config.block_size - 1
    return System(
        name, implementation, most, run, fixed_draft_len=False, drafts=drafts, auto=True
    )


def _seed_of(seed: int, prompt: InputIds) -> int:
    number = zlib.crc32(",".join(map(str, prompt)).encode())
    return SamplingParams(seed=seed).seed_of(number, 1)


def sequentially(answer: Callable[[InputIds, int], Answer], width: int) -> Run:
    """Return the `run` of a system that answers one prompt at a time in steps of `width` rows.

    The steps of an answer are taken to be equally long.
    """

    def run(prompts: Sequence[InputIds], batch: int, max_tokens: int) -> BatchRun:
        assert batch == 1
        start = perf_counter()
        answers = [answer(prompt, max_tokens) for prompt in prompts]
        seconds = perf_counter() - start
        steps = []
        for one in answers:
            lengths = one.acceptance_lengths
            steps += [Step(1, width, one.decode_seconds / len(lengths), n) for n in lengths]
        return BatchRun(answers, steps, seconds)

    return run
