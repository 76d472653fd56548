"""Where a step's time goes on a backend that times no kernels: from the steps' own times."""

from __future__ import annotations

from collections.abc import Sequence

from trtllm_dflash.profile.result import StepBreakdown, SystemResult


def breakdown_by_differences(results: Sequence[SystemResult]) -> list[StepBreakdown]:
    """From a plain engine's results and a DFlash engine's with 0 drafts among them.

    A step without drafts to verify costs what a plain step costs, and drafting, which it does all
    the same; each draft to verify makes it longer. What cannot be told apart so is None; without
    the two steps to compare with, there is no breakdown.
    """
    seconds = {
        (result.implementation, result.batch, result.draft_len): result.step_seconds.mean
        for result in results
    }
    step_breakdowns = []
    for result in results:
        plain, without = (
            seconds.get((implementation, result.batch, 0)) for implementation in ("plain", "dflash")
        )
        if plain is None or without is None:
            continue
        draft = without - plain if result.implementation == "dflash" else 0.0
        step_breakdowns.append(
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
    return step_breakdowns
