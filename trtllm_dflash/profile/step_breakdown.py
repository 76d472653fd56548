"""Where a step's time goes on a backend that does not time kernels: from the steps' own times."""

from __future__ import annotations

from collections.abc import Sequence

from trtllm_dflash.profile.result import DFLASH, PLAIN, StepBreakdown, SystemResult


def breakdown_by_differences(results: Sequence[SystemResult]) -> list[StepBreakdown]:
    """Break steps down into verification and drafting by comparing step times.

    `results` are a plain engine's and a DFlash engine's, the latter with 0 drafts among them. A
    step that verifies no drafts costs a plain step and the drafting, which it does all the same.
    What cannot be told apart is None. Batch sizes without both steps are left out.
    """
    seconds = {}
    for result in results:
        key = (result.implementation, result.batch, result.draft_len)
        seconds[key] = result.step_seconds.mean
    breakdowns = []
    for result in results:
        plain = seconds.get((PLAIN, result.batch, 0))
        without_drafts = seconds.get((DFLASH, result.batch, 0))
        if plain is None or without_drafts is None:
            continue
        draft = without_drafts - plain if result.implementation == DFLASH else 0.0
        breakdowns.append(
            StepBreakdown(
                system=result.system,
                batch=result.batch,
                draft_len=result.draft_len,
                method="differences",
                step_seconds=result.step_seconds.mean,
                verify_seconds=result.step_seconds.mean - draft,
                accept_seconds=None,
                draft_seconds=draft,
                host_seconds=None,
                layers=[],
            )
        )
    return breakdowns
