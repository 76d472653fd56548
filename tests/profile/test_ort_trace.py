"""The time of a step by layer: real kernels of a tiny engine, made-up events, and differences."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import onnx_ir
import pytest

from tests.fixtures.quantized import quantized_copy
from tests.fixtures.tiny_hybrid import tiny_hybrid
from tests.fixtures.tiny_models import tiny_drafter, tiny_target
from tests.fixtures.tiny_moe import tiny_qwen3_moe
from tests.profile.conftest import DRAFTER, TARGET, sentence
from trtllm_dflash.builder.build_engine import build_engine
from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.engine_dir.files import MODEL_FILE
from trtllm_dflash.errors import EngineError
from trtllm_dflash.options.build import BuildConfig
from trtllm_dflash.profile import kernel_layers, ort_trace
from trtllm_dflash.profile.ort_trace import (
    STEPS,
    Observation,
    merge_observations,
    seconds_by_layer,
    trace_step_breakdowns,
)
from trtllm_dflash.profile.result import Profile
from trtllm_dflash.profile.step_breakdown import breakdown_by_differences

pytestmark = pytest.mark.slow

TARGET_LAYERS, DRAFTER_LAYERS = 6, 2
NOT_IN_BLOCKS = (
    "fc",
    "layers.0.self_attn.o_proj",
    "layers.1.self_attn.o_proj",
)  # inputs that 16 does not divide
assert TARGET.is_dir()


def test_breakdown_covers_every_engine(found: Profile) -> None:
    names = [
        (breakdown.batch, breakdown.system, breakdown.draft_len)
        for breakdown in found.step_breakdowns
    ]
    systems = [("plain", 0), ("DFlash 0", 0), ("DFlash 5", 5), ("DFlash 7", 7)]
    assert names == [(batch, *system) for batch in (1, 3) for system in systems]


def test_breakdown_parts_and_layers_add_up(found: Profile) -> None:
    for breakdown in found.step_breakdowns:
        assert breakdown.method == "kernels"
        assert breakdown.accept_seconds is not None
        assert breakdown.host_seconds is not None
        parts = {
            "verify": breakdown.verify_seconds,
            "accept": breakdown.accept_seconds,
            "draft": breakdown.draft_seconds,
        }
        assert sum(parts.values()) + breakdown.host_seconds == pytest.approx(
            breakdown.step_seconds
        )
        for part, seconds in parts.items():
            assert sum(
                layer.seconds for layer in breakdown.layers if layer.part == part
            ) == pytest.approx(seconds)
        assert (breakdown.draft_seconds == 0) == (breakdown.system == "plain")
        assert (
            min(breakdown.verify_seconds, breakdown.accept_seconds, breakdown.host_seconds) > 0
        )
        names = [layer.layer for layer in breakdown.layers]
        layers = [f"target/layers.{index}" for index in range(TARGET_LAYERS)]
        layers += (
            [f"drafter/layers.{index}" for index in range(DRAFTER_LAYERS)]
            if breakdown.draft_seconds
            else []
        )
        assert [name for name in names if "layers." in name] == layers
        assert "target/lm_head" in names


def test_kernels_of_attention_go_to_their_layer() -> None:
    """Bodies of operators are inlined. A call belongs to the layer that its result goes to."""
    names = {
        "/target/embed_kernel_time": 1,
        "/target/layers.0/q_proj/MatMul_kernel_time": 10,
        "_inlfunc_DFlashVerifyAttention_token_9_/Softmax_kernel_time": 100,
        "/target/layers.0/o_proj/MatMul_kernel_time": 1000,
        "/target/layers.1/q_proj/MatMul_kernel_time": 20,
        "_inlfunc_DFlashVerifyAttention_/Shape_kernel_time": 200,
        "_inlfunc_DFlashVerifyAttention_/Softmax_kernel_time": 2000,
        "/target/layers.1/o_proj/MatMul_kernel_time": 20000,
        "/target/lm_head/MatMul_kernel_time": 3,
        "_inlfunc_DFlashAccept_/ArgMax_kernel_time": 4,
        "/accept/Cast_kernel_time": 40,
        "/drafter/layers.0/k_proj/MatMul_kernel_time": 5,
        "_inlfunc_DFlashDraftAttention_token_3_/Softmax_kernel_time": 500,
        "somewhere_kernel_time": 7,
    }
    events: list[dict[str, Any]] = [
        {"name": name, "ts": index, "dur": microseconds}
        for index, (name, microseconds) in enumerate(names.items())
    ]
    found = {layer: round(seconds * 1e6) for layer, seconds in seconds_by_layer(events).items()}
    assert found == {
        "target": 1,
        "target/layers.0": 1110,
        "target/layers.1": 22220,
        "target/lm_head": 3,
        "accept": 44,
        "drafter/layers.0": 505,
        "": 7,
    }


def test_kernels_in_a_loop_are_in_its_time() -> None:
    """Linear attention writes its state late, and its loop tells the layer."""
    events = [
        kernel("/target/layers.0/in_proj/Gemm", 0, 5),
        kernel("_inlfunc_DFlashGatedDelta_token_3_/Loop", 5, 100, "Loop"),
        kernel("_inlfunc_DFlashGatedDelta_token_3_/body/MatMul", 10, 40),
        kernel("_inlfunc_DFlashGatedDelta_token_3_/body/Loop", 60, 20, "Loop"),
        kernel("_inlfunc_DFlashGatedDelta_token_3_/body/Add", 65, 7),
        kernel("/target/layers.0/out_proj/Gemm", 105, 3),
        kernel("/target/layers.1/self_attn/Softmax", 110, 50),
        kernel("/target/layers.1/o_proj/Gemm", 160, 2),
        kernel("_inlfunc_DFlashGatedDelta_/Loop", 170, 200, "Loop"),
        kernel("_inlfunc_DFlashGatedDelta_token_3_/TensorScatter", 370, 9),
        kernel("_inlfunc_DFlashGatedDelta_/TensorScatter", 380, 11),
        kernel("/target/layers.2/out_proj/Gemm", 391, 1),
    ]
    run = {"name": "model_run", "ts": 0, "dur": 400}
    (found,) = ort_trace.traced_runs([run, *events])
    seconds = seconds_by_layer(found.kernels)
    assert {layer: round(each * 1e6) for layer, each in seconds.items()} == {
        "target/layers.0": 5 + 100 + 3 + 9,
        "target/layers.1": 50 + 2,
        "target/layers.2": 200 + 11 + 1,
    }


def kernel(name: str, start: int, microseconds: int, op_name: str = "Add") -> dict[str, Any]:
    """Return ONNX Runtime's event of a kernel."""
    return {
        "cat": "Node",
        "name": f"{name}_kernel_time",
        "ts": start,
        "dur": microseconds,
        "args": {"op_name": op_name},
    }


@pytest.fixture(scope="module", params=["experts", "nvfp4", "hybrid"])
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """Make a target and a drafter whose graphs have functions besides attention.

    These are experts, roundings to NVFP4, or linear attention.
    """
    root = tmp_path_factory.mktemp(request.param)
    if request.param == "hybrid":
        target = tiny_hybrid(root / "target", "qwen3_5_moe")
        return target, tiny_drafter(root / "drafter", target, num_taps=2)
    if request.param == "experts":
        target = tiny_qwen3_moe(root / "target")
        return target, tiny_drafter(root / "drafter", target, num_taps=2)
    source = tiny_target(root / "source", "qwen3", num_layers=2)
    drafter = tiny_drafter(root / "plain", source, num_layers=2, taps=(0,))
    return quantized_copy(source, root / "target"), quantized_copy(
        drafter, root / "drafter", exclude=NOT_IN_BLOCKS
    )


def test_kernels_of_functions_go_to_their_layer(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine's graph has the layer of each call; ONNX Runtime's kernel names do not."""
    target, drafter = pair
    build_engine(
        BuildConfig(str(target), tmp_path / "engine", drafter=str(drafter), max_seq_len=64)
    )
    graph = onnx_ir.load(tmp_path / "engine" / MODEL_FILE).graph
    expected = Counter(
        (node.op_type, kernel_layers.layer_in_scope(node.name or ""))
        for node in graph
        if node.domain.startswith("trtllm_dflash")
    )
    assert {name for name, _ in expected} > {"DFlashDraftAttention", "DFlashAccept"}
    runs: list[list[str]] = []
    seconds = ort_trace.seconds_by_layer

    def noted(events: Any) -> dict[str, float]:
        runs.append([event["name"] for event in events])
        return seconds(events)

    monkeypatch.setattr(ort_trace, "seconds_by_layer", noted)
    config = EngineConfig.load(tmp_path / "engine")
    (breakdown,) = trace_step_breakdowns(
        tmp_path / "engine",
        config,
        {3: "x"},
        batches=[1],
        prompts=[[1, 2, 3]],
        max_tokens=9,
        num_threads=1,
    )
    assert len(runs) == STEPS
    for names in runs:
        calls = {}
        for name, layer in zip(names, kernel_layers.layers_of(names), strict=True):
            found = kernel_layers.inlined_call(name)
            if found:
                call, function = found
                calls[call] = function, layer
        assert Counter(calls.values()) == expected
    assert {layer for _, layer in expected} <= {row.layer for row in breakdown.layers}


def test_kernels_of_unknown_functions_go_to_the_next_layer() -> None:
    names = [
        "/target/layers.0/Add",
        "_inlfunc_Other_token_3_/Mul",
        "Transpose_7",
        "/target/layers.1/Add",
    ]
    names += ["/Concat", "_inlfunc_Other_/Mul", "Transpose_8"]
    layers = [
        "target/layers.0",
        "target/layers.1",
        "target/layers.1",
        "target/layers.1",
        "",
        "",
        "",
    ]
    assert kernel_layers.layers_of([f"{name}_kernel_time" for name in names]) == layers


def test_trace_stays_within_the_caches(tmp_path: Path) -> None:
    """Prompts and answers up to the last position, more steps than either has room for, and several
    slots.
    """
    sizes: dict[str, Any] = {"max_seq_len": 30, "max_batch_size": 2}
    build_engine(BuildConfig(str(TARGET), tmp_path / "engine", drafter=str(DRAFTER), **sizes))
    config = EngineConfig.load(tmp_path / "engine")
    names = {0: "DFlash 0", config.block_size - 1: "DFlash"}
    for length, max_tokens in ((20, 10), (28, 2)):
        prompts = [sentence(3, 2, length), sentence(40, 4, 3)]
        step_breakdowns = trace_step_breakdowns(
            tmp_path / "engine",
            config,
            names,
            batches=[1, 2],
            prompts=prompts,
            max_tokens=max_tokens,
            num_threads=1,
        )
        assert [(breakdown.batch, breakdown.system) for breakdown in step_breakdowns] == [
            (n, names[d]) for n in (1, 2) for d in names
        ]


def test_merge_observations_takes_the_fastest() -> None:
    """Each figure is the smallest of all steps; time of no layer is the host's."""
    steps = [
        Observation(
            0.013, 0.003, {"target/layers.0": 6.0, "drafter/fc": 2.0, "accept": 1.0, "": 1.0}
        ),
        Observation(
            0.020, 0.004, {"target/layers.0": 9.0, "drafter/fc": 1.0, "accept": 1.0, "": 1.0}
        ),
    ]
    breakdown = merge_observations("DFlash 3", 2, 3, steps)
    assert breakdown.step_seconds == 0.013
    assert breakdown.verify_seconds == pytest.approx(0.010 * 6 / 9)
    assert breakdown.draft_seconds == pytest.approx(0.010 * 1 / 9)
    assert breakdown.accept_seconds == pytest.approx(0.010 * 1 / 9)
    assert breakdown.host_seconds == pytest.approx(0.003 + 0.010 * 1 / 9)


def test_breakdown_by_differences_of_step_times(found: Profile) -> None:
    step_breakdowns = {
        (breakdown.system, breakdown.batch): breakdown
        for breakdown in breakdown_by_differences(found.results)
    }
    steps = {
        (result.system, result.batch): result.step_seconds.mean for result in found.results
    }
    assert step_breakdowns.keys() == steps.keys()
    for (system, batch), breakdown in step_breakdowns.items():
        drafting = (
            0.0 if system == "plain" else steps["DFlash 0", batch] - steps["plain", batch]
        )
        assert breakdown.draft_seconds == pytest.approx(drafting)
        assert breakdown.verify_seconds == pytest.approx(steps[system, batch] - drafting)
        assert (
            breakdown.method,
            breakdown.accept_seconds,
            breakdown.host_seconds,
            breakdown.layers,
        ) == (
            "differences",
            None,
            None,
            [],
        )


def test_breakdown_by_differences_needs_both_engines(found: Profile) -> None:
    assert (
        breakdown_by_differences(
            [result for result in found.results if result.system != "DFlash 0"]
        )
        == []
    )
    assert (
        breakdown_by_differences(
            [result for result in found.results if result.system != "plain"]
        )
        == []
    )


def test_trace_that_lacks_steps_is_refused(
    engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort_trace, "traced_runs", lambda _: [])
    config = EngineConfig.load(engine)
    with pytest.raises(EngineError, match=r"steps ran, and ONNX Runtime's trace has 0"):
        trace_step_breakdowns(
            engine,
            config,
            {3: "DFlash 3"},
            batches=[1],
            prompts=[[1, 2, 3]],
            max_tokens=9,
            num_threads=1,
        )
