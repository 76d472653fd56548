"""A profile of the demo pair: an independent clock agrees, and all systems give the same text."""

from __future__ import annotations

import pytest

pytest.importorskip("dflash")

from tests.conftest import DEMO
from tests.profile.conftest import Stopwatch
from trtllm_dflash.options.profiling import ProfileConfig
from trtllm_dflash.profile.profiler import profile
from trtllm_dflash.profile.prompts import PromptSet, builtin_prompts

pytestmark = [pytest.mark.slow, pytest.mark.demo]


def test_profile_agrees_with_a_stopwatch_and_all_systems(stopwatch: Stopwatch) -> None:
    config = ProfileConfig(
        DEMO / "cpu",
        plain=DEMO / "plain",
        batch="1",
        draft_lens="7",
        against="plain,reference,hf",
        max_tokens=6,
        num_threads=1,
    )
    found = profile(config, PromptSet("some", tuple(builtin_prompts()[:2])))
    results = {result.system: result for result in found.results}
    assert list(results) == ["plain", "DFlash 7", "reference", "hf", "hf lookup"]
    assert all(result.same_tokens == 2 for result in results.values())
    for system in ("plain", "DFlash 7"):
        watched, told = (
            stopwatch.total(results[system]),
            results[system].step_seconds.mean * results[system].full_steps,
        )
        # The loop takes a thousandth of these steps; the rest of the margin is for a busy machine.
        assert watched <= told <= 1.3 * watched, system
    ours, theirs = results["DFlash 7"].acceptance, results["reference"].acceptance
    assert ours.by_position[0] == pytest.approx(theirs.by_position[0])
