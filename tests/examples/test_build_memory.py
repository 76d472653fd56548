"""What a build takes of memory beside mapped files, at a published model's width."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.examples.scripts import example

LIMIT = 1.5  # bytes of own memory for each byte of weights


@pytest.mark.slow
def test_own_memory_grows_with_the_weights(tmp_path: Path) -> None:
    """Two layers of Qwen3-4B more take their own bytes, and little beyond.

    Without the join of gate and up it would be over the limit.
    """
    pytest.importorskip("tensorrt_rtx")
    script = example("benchmark/layer_cost.py")
    cut = script.Cut(pair="Qwen3-4B", vocab_size=2048, whole_drafter=False)
    two, four = (
        script.measure(cut, tmp_path, "sm120", "bf16", layers, plugins=True)
        for layers in (2, 4)
    )
    grown = four["own_memory"] - two["own_memory"]
    weights = four["checkpoint_bytes"] - two["checkpoint_bytes"]
    assert weights > 400_000_000
    assert 0.9 < grown / weights < LIMIT - 0.15
    assert four["own_memory"] < LIMIT * four["checkpoint_bytes"]
