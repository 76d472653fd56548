"""From answers and steps to figures."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trtllm_dflash.profile.curve import CurvePoint
from trtllm_dflash.profile.prompts import EncodedPrompt
from trtllm_dflash.profile.result import (
    AcceptanceStats,
    CategoryResult,
    PromptResult,
    SystemResult,
    TimeSummary,
)
from trtllm_dflash.profile.systems import Answer, BatchRun, System
from trtllm_dflash.runtime.outputs import mean


@dataclass(frozen=True)
class SystemRun:
    """All rounds of a side at a batch size; answer i is that to question i."""

    system: System
    batch: int
    rounds: list[BatchRun]

    @property
    def answers(self) -> list[Answer]:
        """The answers of all rounds, in the questions' order."""
        return [answer for one in self.rounds for answer in one.answers]


def summarize(values: Sequence[float]) -> TimeSummary:
    """Of at least one value."""
    p50, p90, p99 = (float(value) for value in np.percentile(values, (50, 90, 99)))
    return TimeSummary(mean(values), p50, p90, p99, min(values), max(values))


def acceptance(answers: Sequence[Answer], system: System) -> AcceptanceStats:
    """Of a side's answers."""
    draft_len = system.draft_len
    lengths = [length for answer in answers for length in answer.acceptance_lengths]
    whole = [length for answer in answers for length in answer.acceptance_lengths[:-1]]
    histogram = np.bincount(lengths, minlength=draft_len + 2).tolist()
    if not (draft_len and whole and system.fixed_draft_len):
        return AcceptanceStats(mean(lengths), None, len(lengths), histogram, [])
    by_position = [
        sum(length > place for length in whole) / len(whole) for place in range(1, draft_len + 1)
    ]
    draft_acceptance_rate = mean(by_position)
    return AcceptanceStats(
        mean(lengths), draft_acceptance_rate, len(lengths), histogram, by_position
    )


def point(measured: SystemRun) -> CurvePoint | None:
    """The side's point on its curve, from the steps of the whole batch; None if there was no such
    step.
    """
    steps = [step for one in measured.rounds for step in one.steps if step.slots == measured.batch]
    if not steps:
        return None
    acceptance_length = sum(step.tokens for step in steps) / (measured.batch * len(steps))
    seconds = sum(step.seconds for step in steps) / len(steps)
    return CurvePoint.of_step(
        batch=measured.batch,
        draft_len=measured.system.draft_len,
        acceptance_length=acceptance_length,
        step_seconds=seconds,
    )


def system_result(
    measured: SystemRun, questions: Sequence[EncodedPrompt], expected: Sequence[Answer]
) -> SystemResult | None:
    """All figures of a side at a batch size; `expected` are the plain engine's answers to the same
    questions. None if no step had the whole batch.
    """
    here, system, answers = point(measured), measured.system, measured.answers
    if here is None:
        return None
    steps = [step for one in measured.rounds for step in one.steps if step.slots == measured.batch]
    prompts = [
        _prompt_result(index, question, answer, plain)
        for index, (question, answer, plain) in enumerate(
            zip(questions, answers, expected, strict=True)
        )
    ]
    gained = [answer for answer in answers if answer.acceptance_lengths]
    seconds = sum(one.seconds for one in measured.rounds)
    return SystemResult(
        system=system.name,
        implementation=system.implementation,
        batch=measured.batch,
        draft_len=system.draft_len,
        ttft_seconds=summarize([answer.first_token_seconds for answer in answers]),
        tpot_seconds=summarize(
            [answer.decode_seconds / sum(answer.acceptance_lengths) for answer in gained]
        ),
        step_seconds=summarize([step.seconds for step in steps]),
        full_steps=len(steps),
        tokens_per_second_per_user=here.tokens_per_second_per_user,
        tokens_per_second=here.tokens_per_second_per_gpu,
        tokens_per_second_with_prefill=sum(len(answer.token_ids) for answer in answers) / seconds,
        acceptance=acceptance(answers, system),
        by_category=_by_category(questions, answers, system),
        by_prompt=prompts,
        same_tokens=sum(prompt.same_tokens for prompt in prompts),
        tokens_sha256=hashlib.sha256(
            repr([answer.token_ids for answer in answers]).encode()
        ).hexdigest(),
    )


def _prompt_result(
    index: int, question: EncodedPrompt, answer: Answer, plain: Answer
) -> PromptResult:
    return PromptResult(
        index=index,
        category=question.category,
        prompt_tokens=len(question.token_ids),
        tokens=len(answer.token_ids),
        acceptance_length=mean(answer.acceptance_lengths),
        ttft_seconds=answer.first_token_seconds,
        decode_seconds=answer.decode_seconds,
        same_tokens=answer.token_ids == plain.token_ids,
    )


def _by_category(
    questions: Sequence[EncodedPrompt], answers: Sequence[Answer], system: System
) -> list[CategoryResult]:
    kinds: dict[str, list[Answer]] = {}
    for question, answer in zip(questions, answers, strict=True):
        kinds.setdefault(question.category, []).append(answer)
    results = []
    for kind, own in kinds.items():
        tokens = sum(sum(answer.acceptance_lengths) for answer in own)
        seconds = sum(answer.decode_seconds for answer in own)
        speed = tokens / seconds if seconds else 0.0
        results.append(CategoryResult(kind, len(own), tokens, speed, acceptance(own, system)))
    return results
