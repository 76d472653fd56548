"""A `Profile` from what was measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trtllm_dflash.errors import EngineError
from trtllm_dflash.hardware.versions import versions_of
from trtllm_dflash.options.draft_len import AUTO
from trtllm_dflash.options.profiling import ProfileConfig
from trtllm_dflash.profile import provenance
from trtllm_dflash.profile.advice import advise
from trtllm_dflash.profile.curve import Curve, CurvePoint
from trtllm_dflash.profile.prompts import EncodedPrompt, PromptSet
from trtllm_dflash.profile.result import (
    DFLASH,
    PLAIN,
    SCHEMA,
    Advice,
    Profile,
    StepBreakdown,
    SystemResult,
)
from trtllm_dflash.profile.step_breakdown import breakdown_by_differences
from trtllm_dflash.profile.summaries import SystemRun, curve_point, system_result
from trtllm_dflash.profile.sweep import Sweep
from trtllm_dflash.runtime.text.tokenizer import Tokenizer

CLOCK = {
    "ttft_seconds": (
        "a prompt's own steps, from the start of the first to the first token; not the wait for a"
        " slot"
    ),
    "tpot_seconds": (
        "the decode steps that an answer took part in, over its tokens after the first; not the"
        " time in which they wait for another prompt's prefill"
    ),
    "step_seconds": (
        "a decode step's inputs, engine and outputs, while the whole batch takes part; of external"
        " systems, an answer's decode time over its steps"
    ),
    "tokens_per_second_with_prefill": (
        "everything from the first prompt's token ids to the last answer's tokens"
    ),
    "never": "loading, tokenizing, warming up",
}


def assemble(
    config: ProfileConfig,
    sweep: Sweep,
    runs: Sequence[SystemRun],
    prompts: Sequence[EncodedPrompt],
    breakdowns: list[StepBreakdown],
    *,
    facts: Mapping[str, Any],
    argv: Sequence[str],
) -> Profile:
    """Compute all figures; `facts` are the profile's other fields.

    Raises:
        EngineError: if no step of a DFlash or of the plain engine had its whole batch.
    """
    results = _results(runs, prompts)
    if not breakdowns:
        own_results = [one for one in results if one.implementation in (DFLASH, PLAIN)]
        breakdowns = breakdown_by_differences(own_results)
    return Profile(
        schema=SCHEMA,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        argv=list(argv),
        commit=provenance.commit(),
        versions=versions_of(provenance.PACKAGES),
        settings=_settings(config, sweep),
        clock=CLOCK,
        results=results,
        curves=_curves(runs),
        step_breakdowns=breakdowns,
        advice=_advice(runs, sweep.drafts[-1]),
        **facts,
    )


def prompt_facts(
    prompt_set: PromptSet, prompts: Sequence[EncodedPrompt], tokenizer: Tokenizer | None
) -> dict[str, Any]:
    """Describe the prompts that are answered, and how they were put: τ depends on it."""
    return {
        "name": prompt_set.name,
        **prompt_set.chat_format.facts(tokenizer),
        "token_ids_sha256": provenance.digest([prompt.input_ids for prompt in prompts]),
        "count": len(prompts),
        "tokens": sum(len(prompt.input_ids) for prompt in prompts),
        "categories": dict(Counter(prompt.category for prompt in prompts)),
    }


def _settings(config: ProfileConfig, sweep: Sweep) -> dict[str, Any]:
    """Return the options in plain types, with the resolved batch sizes and draft lengths."""
    options = asdict(config).items()
    given = {name: value for name, value in options if not isinstance(value, Path | None)}
    draft_lens = [*sweep.draft_lens, *([AUTO] if sweep.auto else [])]
    return given | {"batch": list(sweep.batches), "draft_lens": draft_lens}


def _results(runs: Sequence[SystemRun], prompts: Sequence[EncodedPrompt]) -> list[SystemResult]:
    """Return the figures of every run that has a full step."""
    plain = {run.batch: run.answers for run in runs if run.system.name == PLAIN}
    results = []
    for run in runs:
        repeated = list(prompts) * (len(run.answers) // len(prompts))
        result = system_result(run, repeated, plain[run.batch])
        if result is not None:
            results.append(result)
    return results


def _points(runs: Sequence[SystemRun]) -> list[CurvePoint]:
    """Return the curve points of runs that have a full step."""
    points = [curve_point(run) for run in runs]
    return [point for point in points if point is not None]


def _curves(runs: Sequence[SystemRun]) -> list[Curve]:
    """Return a curve for each system that has points."""
    by_name: dict[str, list[SystemRun]] = {}
    for run in runs:
        by_name.setdefault(run.system.name, []).append(run)
    curves = [Curve(name, tuple(_points(own))) for name, own in by_name.items()]
    return [curve for curve in curves if curve.points]


def _advice(runs: Sequence[SystemRun], drafts: str) -> Advice:
    """Recommend a draft_len by batch size, for these sources of drafts."""
    own = [run for run in runs if run.system.implementation == DFLASH and not run.system.auto]
    dflash = _points([run for run in own if run.system.drafts in (None, drafts)])
    plain = _points([run for run in runs if run.system.name == PLAIN])
    plain_batches = {point.batch for point in plain}
    if plain_batches.isdisjoint(point.batch for point in dflash):
        raise EngineError(
            "no decode step had its whole batch: all answers ended at once. Give other --prompts,"
            " or --ignore-eos."
        )
    return advise(dflash, plain)
