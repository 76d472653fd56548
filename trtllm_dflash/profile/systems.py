"""The systems of a profile: everything that answers prompts, with one clock for all.

The clock of an answer has two parts. The first runs from where its prompt's first step begins to
its first token; the second over the generation steps in which it took part, to its last token.
Loading and tokenizing are in neither, nor is the wait for a free slot, nor the time in which a
batch stands still for the prompt of another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from trtllm_dflash.runtime.engine import Engine
from trtllm_dflash.runtime.scheduler import Step

InputIds = Sequence[int]


@dataclass(frozen=True)
class Answer:
    """What a side said to one prompt; `acceptance_lengths` as in `Generation`: all tokens but the
    first, by step.
    """

    token_ids: list[int]
    acceptance_lengths: list[int]
    first_token_seconds: float
    decode_seconds: float


@dataclass(frozen=True)
class BatchRun:
    """Some prompts' answers, the generation steps that gave them, and the time of it all, prompts
    included.
    """

    answers: list[Answer]
    steps: list[Step]
    seconds: float


@dataclass(frozen=True)
class System:
    """One way of decoding. `run(prompts, batch, max_tokens)` answers prompts, `batch` of them
    together.
    """

    name: str
    implementation: str  # whose: dflash, plain, reference, huggingface
    draft_len: int  # drafts in a step, at most; 0: none
    run: Callable[[Sequence[InputIds], int, int], BatchRun]
    batches: tuple[int, ...] | None = None  # the only ones that it can do; None: all
    fixed_draft_len: bool = (
        True  # whether every step has draft_len drafts, so that a share of them means something
    )

    def takes(self, batch: int) -> bool:
        """Whether it can answer so many prompts together."""
        return self.batches is None or batch in self.batches


def engine_system(
    name: str, implementation: str, engine: Engine, draft_len: int, **sampling: Any
) -> System:
    """An engine of ours with `draft_len` drafts in a step and fixed options of `SamplingParams`."""

    def run(prompts: Sequence[InputIds], batch: int, max_tokens: int) -> BatchRun:
        steps: list[Step] = []
        options = {**sampling, "draft_len": draft_len, "max_tokens": max_tokens}
        start = perf_counter()
        with engine.stream(prompts, slots=batch, on_step=steps.append, **options) as stream:
            generations = stream.generations()
        seconds = perf_counter() - start
        answers = [
            Answer(one.token_ids, one.acceptance_lengths, one.prefill_seconds, one.decode_seconds)
            for one in generations
        ]
        return BatchRun(answers, steps, seconds)

    return System(name, implementation, draft_len, run)


def sequentially(answer: Callable[[InputIds, int], Answer], width: int) -> Callable[..., BatchRun]:
    """The `run` of a side that answers one prompt at a time; its steps are taken to be equally long
    within an answer.
    """

    def run(prompts: Sequence[InputIds], batch: int, max_tokens: int) -> BatchRun:  # noqa: ARG001 - it is 1
        start = perf_counter()
        answers = [answer(prompt, max_tokens) for prompt in prompts]
        seconds = perf_counter() - start
        steps = [
            Step(1, width, one.decode_seconds / len(one.acceptance_lengths), tokens)
            for one in answers
            for tokens in one.acceptance_lengths
        ]
        return BatchRun(answers, steps, seconds)

    return run
