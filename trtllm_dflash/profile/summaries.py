"""Figures of a system at a batch size, computed from its answers and steps."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trtllm_dflash.options.draft_sources import SOURCES, DraftCount
from trtllm_dflash.profile.curve import CurvePoint
from trtllm_dflash.profile.prompts import EncodedPrompt
from trtllm_dflash.profile.result import (
    AcceptanceStats,
    CategoryResult,
    PromptResult,
    SourceStats,
    SystemResult,
    TimeSummary,
)
from trtllm_dflash.profile.systems import Answer, BatchRun, System
from trtllm_dflash.runtime.outputs import mean
from trtllm_dflash.runtime.scheduler import Step


@dataclass(frozen=True)
class SystemRun:
    """All runs of a system at a batch size; answer i is that to prompt i."""

    system: System
    batch: int
    runs: list[BatchRun]

    @property
    def answers(self) -> list[Answer]:
        """Return the answers of all runs, in the prompts' order."""
        return [answer for run in self.runs for answer in run.answers]

    @property
    def full_steps(self) -> list[Step]:
        """Return the steps in which the whole batch took part."""
        return [step for run in self.runs for step in run.steps if step.slots == self.batch]

    @property
    def seconds(self) -> float:
        """Return the time of all runs."""
        return sum(run.seconds for run in self.runs)


def summarize(seconds: Sequence[float]) -> TimeSummary:
    """Summarize at least one time."""
    p50, p90, p99 = (float(value) for value in np.percentile(seconds, (50, 90, 99)))
    return TimeSummary(mean(seconds), p50, p90, p99, min(seconds), max(seconds))


def acceptance_stats(answers: Sequence[Answer], system: System) -> AcceptanceStats:
    """Count the accepted drafts of a system's answers."""
    lengths: list[int] = []
    uncut: list[int] = []  # without the last step of each answer, which may have been cut
    for answer in answers:
        lengths += answer.acceptance_lengths
        uncut += answer.acceptance_lengths[:-1]
    histogram = np.bincount(lengths, minlength=system.draft_len + 2).tolist()
    rate = None
    by_position = []
    if system.draft_len and uncut and system.fixed_draft_len:
        positions = range(1, system.draft_len + 1)
        by_position = [_share_above(uncut, position) for position in positions]
        rate = mean(by_position)
    sources = _by_source(answers)
    return AcceptanceStats(mean(lengths), rate, len(lengths), histogram, by_position, sources)


def _by_source(answers: Sequence[Answer]) -> list[SourceStats]:
    """Return the verified and accepted drafts of each source that had some."""
    found = []
    for source in SOURCES:
        counts = [one.drafts_by_source.get(source, DraftCount(0, 0)) for one in answers]
        verified = sum(count.verified for count in counts)
        if verified:
            accepted = sum(count.accepted for count in counts)
            found.append(SourceStats(source, verified, accepted))
    return found


def _share_above(lengths: Sequence[int], limit: int) -> float:
    return sum(length > limit for length in lengths) / len(lengths)


def curve_point(run: SystemRun) -> CurvePoint | None:
    """Return the system's point on its curve, from the steps of the whole batch; None without."""
    steps = run.full_steps
    if not steps:
        return None
    return CurvePoint.of_step(
        batch=run.batch,
        draft_len=run.system.draft_len,
        acceptance_length=sum(step.tokens for step in steps) / (run.batch * len(steps)),
        step_seconds=sum(step.seconds for step in steps) / len(steps),
    )


def system_result(
    run: SystemRun, prompts: Sequence[EncodedPrompt], plain: Sequence[Answer]
) -> SystemResult | None:
    """Return all figures of a system at a batch size, or None if no step had the whole batch.

    `plain` are the plain engine's answers to the same prompts.
    """
    point = curve_point(run)
    system = run.system
    answers = run.answers
    if point is None:
        return None
    by_prompt: list[PromptResult] = []
    for prompt, answer, expected in zip(prompts, answers, plain, strict=True):
        by_prompt.append(_prompt_result(len(by_prompt), prompt, answer, expected))
    num_tokens = sum(len(answer.token_ids) for answer in answers)
    all_token_ids = repr([answer.token_ids for answer in answers])
    return SystemResult(
        system=system.name,
        implementation=system.implementation,
        batch=run.batch,
        draft_len=system.draft_len,
        drafts=system.drafts,
        auto=system.auto,
        ttft_seconds=summarize([answer.first_token_seconds for answer in answers]),
        tpot_seconds=summarize(_seconds_per_token(answers)),
        step_seconds=summarize([step.seconds for step in run.full_steps]),
        full_steps=len(run.full_steps),
        tokens_per_second_per_user=point.tokens_per_second_per_user,
        tokens_per_second=point.tokens_per_second_per_gpu,
        tokens_per_second_with_prefill=num_tokens / run.seconds,
        acceptance=acceptance_stats(answers, system),
        by_category=_by_category(prompts, answers, system),
        by_prompt=by_prompt,
        same_tokens=sum(row.same_tokens for row in by_prompt),
        tokens_sha256=hashlib.sha256(all_token_ids.encode()).hexdigest(),
    )


def _seconds_per_token(answers: Sequence[Answer]) -> list[float]:
    """Return the decode seconds per token of every answer that has a decode step."""
    return [
        answer.decode_seconds / sum(answer.acceptance_lengths)
        for answer in answers
        if answer.acceptance_lengths
    ]


def _prompt_result(
    index: int, prompt: EncodedPrompt, answer: Answer, plain: Answer
) -> PromptResult:
    """Return the figures of one answer."""
    return PromptResult(
        index=index,
        category=prompt.category,
        prompt_tokens=len(prompt.input_ids),
        tokens=len(answer.token_ids),
        acceptance_length=mean(answer.acceptance_lengths),
        ttft_seconds=answer.first_token_seconds,
        decode_seconds=answer.decode_seconds,
        same_tokens=answer.token_ids == plain.token_ids,
    )


def _by_category(
    prompts: Sequence[EncodedPrompt], answers: Sequence[Answer], system: System
) -> list[CategoryResult]:
    """Return the figures by category, in the order of the prompts."""
    grouped: dict[str, list[Answer]] = {}
    for prompt, answer in zip(prompts, answers, strict=True):
        grouped.setdefault(prompt.category, []).append(answer)
    results = []
    for category, own in grouped.items():
        tokens = sum(sum(answer.acceptance_lengths) for answer in own)
        seconds = sum(answer.decode_seconds for answer in own)
        speed = tokens / seconds if seconds else 0.0
        stats = acceptance_stats(own, system)
        results.append(CategoryResult(category, len(own), tokens, speed, stats))
    return results
