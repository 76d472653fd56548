"""Where a step's time goes: real kernels of a tiny engine, made-up events, and differences of step times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.profile.conftest import TARGET
from trtllm_dflash.errors import EngineError
from trtllm_dflash.profile import trace
from trtllm_dflash.profile.result import Profile
from trtllm_dflash.profile.split import split_by_differences
from trtllm_dflash.profile.trace import Observation, seconds_by_layer, split_of, trace_splits
from trtllm_dflash.runtime.config import EngineConfig

TARGET_LAYERS, DRAFTER_LAYERS = 6, 2
assert TARGET.is_dir()


def test_every_side_is_split(found: Profile) -> None:
    names = [(split.batch, split.side, split.draft_len) for split in found.splits]
    sides = [("plain", 0), ("DFlash 0", 0), ("DFlash 5", 5), ("DFlash 7", 7)]
    assert names == [(batch, *side) for batch in (1, 3) for side in sides]


def test_parts_and_layers_add_up(found: Profile) -> None:
    for split in found.splits:
        assert split.method == "kernels"
        assert split.accept_seconds is not None
        assert split.host_seconds is not None
        parts = {
            "verify": split.verify_seconds,
            "accept": split.accept_seconds,
            "draft": split.draft_seconds,
        }
        assert sum(parts.values()) + split.host_seconds == pytest.approx(split.step_seconds)
        for part, seconds in parts.items():
            assert sum(layer.seconds for layer in split.layers if layer.part == part) == pytest.approx(seconds)
        assert (split.draft_seconds == 0) == (split.side == "plain")
        assert min(split.verify_seconds, split.accept_seconds, split.host_seconds) > 0
        names = [layer.layer for layer in split.layers]
        layers = [f"target/layers.{index}" for index in range(TARGET_LAYERS)]
        layers += [f"drafter/layers.{index}" for index in range(DRAFTER_LAYERS)] if split.draft_seconds else []
        assert [name for name in names if "layers." in name] == layers
        assert "target/lm_head" in names


def test_attention_goes_to_its_layer() -> None:
    """Bodies of operators are inlined: calls are told apart by their order, whatever their names say."""
    names = {
        "/target/embed_kernel_time": 1,
        "/target/layers.0/q_proj/MatMul_kernel_time": 10,
        "_inlfunc_DFlashVerifyAttention_token_9_/Softmax_kernel_time": 100,
        "/target/layers.1/q_proj/MatMul_kernel_time": 20,
        "_inlfunc_DFlashVerifyAttention_/Shape_kernel_time": 200,
        "_inlfunc_DFlashVerifyAttention_/Softmax_kernel_time": 2000,
        "/target/lm_head/MatMul_kernel_time": 3,
        "_inlfunc_DFlashAccept_/ArgMax_kernel_time": 4,
        "/accept/Cast_kernel_time": 40,
        "/drafter/layers.0/k_proj/MatMul_kernel_time": 5,
        "_inlfunc_DFlashDraftAttention_token_3_/Softmax_kernel_time": 500,
        "somewhere_kernel_time": 7,
    }
    events: list[dict[str, Any]] = [
        {"name": name, "ts": index, "dur": microseconds} for index, (name, microseconds) in enumerate(names.items())
    ]
    found = {layer: round(seconds * 1e6) for layer, seconds in seconds_by_layer(events).items()}
    assert found == {
        "target": 1,
        "target/layers.0": 110,
        "target/layers.1": 2220,
        "target/lm_head": 3,
        "accept": 44,
        "drafter/layers.0": 505,
        "": 7,
    }


def test_a_step_is_divided_as_its_twin_s_kernels() -> None:
    """The fastest step, the host's part of the fastest twin, each layer's fastest kernels; no layer's time is the
    host's."""
    steps = [
        Observation(0.013, 0.003, {"target/layers.0": 6.0, "drafter/fc": 2.0, "accept": 1.0, "": 1.0}),
        Observation(0.020, 0.004, {"target/layers.0": 9.0, "drafter/fc": 1.0, "accept": 1.0, "": 1.0}),
    ]
    split = split_of("DFlash 3", 2, 3, steps)
    assert split.step_seconds == 0.013
    assert split.verify_seconds == pytest.approx(0.010 * 6 / 9)
    assert split.draft_seconds == pytest.approx(0.010 * 1 / 9)
    assert split.accept_seconds == pytest.approx(0.010 * 1 / 9)
    assert split.host_seconds == pytest.approx(0.003 + 0.010 * 1 / 9)


def test_differences_of_step_times(found: Profile) -> None:
    splits = {(split.side, split.batch): split for split in split_by_differences(found.results)}
    steps = {(result.side, result.batch): result.step_seconds.mean for result in found.results}
    assert splits.keys() == steps.keys()
    for (side, batch), split in splits.items():
        drafting = 0.0 if side == "plain" else steps["DFlash 0", batch] - steps["plain", batch]
        assert split.draft_seconds == pytest.approx(drafting)
        assert split.verify_seconds == pytest.approx(steps[side, batch] - drafting)
        assert (split.method, split.accept_seconds, split.host_seconds, split.layers) == ("differences", None, None, [])


def test_without_a_step_to_compare_with_there_is_no_split(found: Profile) -> None:
    assert split_by_differences([result for result in found.results if result.side != "DFlash 0"]) == []
    assert split_by_differences([result for result in found.results if result.side != "plain"]) == []


def test_a_trace_that_lacks_steps(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "_by_run", lambda _: [])
    config = EngineConfig.load(engine)
    with pytest.raises(EngineError, match=r"steps ran, and ONNX Runtime's trace has 0"):
        trace_splits(engine, config, {3: "DFlash 3"}, batches=[1], prompts=[[1, 2, 3]], num_threads=1)
