"""A profile of the demo pair: an independent clock agrees, and all sides write the same."""

from __future__ import annotations

import pytest

pytest.importorskip("dflash")

from tests.conftest import DEMO
from tests.profile.conftest import Stopwatch
from trtllm_dflash.options.profiling import ProfileConfig
from trtllm_dflash.profile.profiler import Asked, profile
from trtllm_dflash.profile.prompts import own_prompts

pytestmark = pytest.mark.demo


def test_a_stopwatch_agrees_and_so_do_all_sides(stopwatch: Stopwatch) -> None:
    config = ProfileConfig(
        DEMO / "cpu",
        plain=DEMO / "plain",
        batch="1",
        draft_lens="7",
        against="plain,reference,hf",
        output_len=6,
        num_threads=1,
    )
    found = profile(config, Asked("some", tuple(own_prompts()[:2])))
    results = {result.side: result for result in found.results}
    assert list(results) == ["plain", "DFlash 7", "reference", "hf", "hf lookup"]
    assert all(result.same_tokens == 2 for result in results.values())
    for side in ("plain", "DFlash 7"):
        watched, told = (
            stopwatch.total(results[side]),
            results[side].step_seconds.mean * results[side].full_steps,
        )
        # The loop takes a thousandth of these steps; the rest of the margin is for a busy machine.
        assert watched <= told <= 1.05 * watched, side
    ours, theirs = results["DFlash 7"].acceptance, results["reference"].acceptance
    assert ours.by_position[0] == pytest.approx(theirs.by_position[0])
