"""What goes wrong in the driver is an error that says what, where and what to do."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

pytest.importorskip("tensorrt_rtx")
pytest.importorskip("cuda.bindings.driver")

import tensorrt_rtx as trt

from tests.runtime.stated_engine import DTYPES
from tests.stand_in import scenarios
from tests.stand_in.checks import check_contexts
from tests.stand_in.driver import INVALID_IMAGE, NOT_FOUND, OUT_OF_MEMORY, Setup
from tests.stand_in.pairs import Engines, random_prompts
from tests.stand_in.process import StandIn
from trtllm_dflash.errors import EngineError

PROMPTS = random_prompts(4, 18)
SHORT = random_prompts(3)  # for tests with many runs
INPUT = trt.TensorIOMode.INPUT
# Where one of these fails, there is nobody to tell, and what it should have freed is left.
FREEING = {
    "cuMemFree",
    "cuMemFreeHost",
    "cuStreamDestroy",
    "cuEventDestroy",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuCtxPushCurrent",
    "cuCtxPopCurrent",
}
# Where one of these fails, less is known and all the same can be done, or the plugin that needs its
# kernels asks once more.
NOT_NEEDED = {
    "cuInit",
    "cuDeviceGet",
    "cuDriverGetVersion",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDeviceTotalMem",
    "cuDeviceGetAttribute",
    "cuCtxGetCurrent",
    "cuCtxGetDevice",
    "cuModuleLoadData",
    "cuModuleGetFunction",
}


@pytest.fixture(scope="module")
def engines(pair_engines: Callable[[str], Engines]) -> Engines:
    return pair_engines("llama")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "status", "words", "least"),
    [
        ("cuMemAlloc", OUT_OF_MEMORY, r"failed to allocate .*CUDA_ERROR_OUT_OF_MEMORY", 12),
        ("cuMemAllocHost", OUT_OF_MEMORY, r"failed to allocate .* of pinned memory for", 4),
        ("cuGraphInstantiateWithFlags", OUT_OF_MEMORY, r"cuGraphInstantiate failed: .*OUT_", 1),
        ("cuModuleLoadData", INVALID_IMAGE, r"refuses the step:\s+cuModuleLoadData failed", 2),
        ("cuModuleGetFunction", NOT_FOUND, r"refuses the step:\s+cuModuleGetFunction", 4),
        ("cuStreamBeginCapture", OUT_OF_MEMORY, r"cuStreamBeginCapture failed", 1),
        ("cuStreamCreate", OUT_OF_MEMORY, r"cuStreamCreate failed", 1),
        ("cuEventCreate", OUT_OF_MEMORY, r"cuEventCreate failed", 2),
    ],
)
def test_any_call_that_fails_is_an_error(
    quick_stand_in: StandIn,
    engines: Engines,
    function: str,
    status: int,
    words: str,
    least: int,
) -> None:
    texts, left = quick_stand_in.run(scenarios.refusals, engines.gpu, PROMPTS, function, status)
    assert left == []
    assert least <= len(texts) < 60
    advice = "Free GPU memory" if status == OUT_OF_MEMORY else "doctor|build it again"
    for text in texts:
        assert re.search(words, text), text
        assert re.search(advice, text), text
        assert status != OUT_OF_MEMORY or "the file or the driver" not in text, text


@pytest.mark.slow
def test_each_call_that_fails_once(quick_stand_in: StandIn, engines: Engines) -> None:
    """No failure is passed over: the run ends in an error, or has the right tokens all the same."""
    found = quick_stand_in.run(scenarios.failures, engines.gpu, SHORT, OUT_OF_MEMORY)
    tokens, _ = found.pop(("", 0))
    assert isinstance(tokens, list)
    assert len({function for function, _ in found}) > 25
    words = re.compile(r"CUDA_ERROR_OUT_OF_MEMORY(.|\n)*Free GPU memory")
    wrong = []
    for call, (outcome, left) in found.items():
        if isinstance(outcome, str):
            is_right = words.search(outcome) is not None
        else:
            is_right = call[0] in {*NOT_NEEDED, *FREEING} and outcome == tokens
        if not is_right or (left and call[0] not in FREEING):
            wrong.append((call, outcome, left))
    assert wrong == []


def test_old_driver_cannot_load(quick_stand_in: StandIn, engines: Engines) -> None:
    text = quick_stand_in.run(scenarios.load_over, engines.gpu, Setup(version=12040))
    assert re.search(r"The driver is at fault: the driver is for CUDA 12\.4, and", text), text


def test_no_gpu_to_load_on(quick_stand_in: StandIn, engines: Engines) -> None:
    text = quick_stand_in.run(scenarios.load_over, engines.gpu, Setup(archs=()))
    assert re.search(r"cuInit failed: CUDA_ERROR_NO_DEVICE .*No GPU is visible", text), text


def test_late_stream_has_the_same_tokens(quick_stand_in: StandIn, engines: Engines) -> None:
    calls = [{"max_tokens": 4}]
    early, late = (
        quick_stand_in.run(scenarios.generate, engines.gpu, PROMPTS, calls, Setup(late=is_late))
        for is_late in (False, True)
    )
    assert late == early


@pytest.mark.parametrize(
    ("method", "about", "answer", "words"),
    [
        ("get_tensor_dtype", ("next_len",), DTYPES["int64"], "next_len has the type int64"),
        ("get_tensor_mode", ("new_ids",), INPUT, "new_ids has the direction input"),
        ("get_tensor_shape", ("target_key.0",), (-1, 2, 97, 64), "has the shape .*97, 64"),
        ("get_tensor_shape", ("past_len",), (-1, -1), "past_len has the shape"),
        ("get_aliased_input_tensor", ("target_key.0.out",), "target_value.0", "has the alias"),
        (
            "get_tensor_profile_shape",
            ("input_ids", 0),
            [(1, 1), (1, 8), (1, 8)],
            r"input_ids has at most the shape \[1, 8\] in profile 0, .* width 16",
        ),
        (
            "get_tensor_profile_shape",
            ("past_len", 1),
            [(1,), (2,), (2,)],
            r"past_len has at most the shape \[2\] in profile 1, .* batch 3",
        ),
        (
            "get_tensor_profile_shape",
            ("target_key.0", 1),
            [(1, 2, 96, 64), (2, 2, 96, 64), (2, 2, 96, 64)],
            r"target_key\.0 has at most the shape \[2, .*\] in profile 1, .* batch 3",
        ),
    ],
)
def test_engine_that_states_something_else(
    quick_stand_in: StandIn,
    engines: Engines,
    method: str,
    about: tuple[str | int, ...],
    answer: object,
    words: str,
) -> None:
    stated = quick_stand_in.run(scenarios.load_stated, engines.gpu, method, about, answer)
    assert re.search(words, stated), stated


@pytest.mark.parametrize(
    ("kernel", "words"),
    [
        ("accept_scan", r"slot 0, prefill step 1: "),
        ("accept_choose", r"slot 0, prefill step 1: "),
        (
            "accept_finish",
            r"slot 0, prefill step 1: num_new is -?\d+, expected 1 to 1\. The engine",
        ),
        ("dflash_attention_d", r"slot 0, prefill step 1: .* not\s+finite"),
    ],
)
def test_kernel_that_does_nothing(
    quick_stand_in: StandIn, engines: Engines, kernel: str, words: str
) -> None:
    calls = [{"max_tokens": 4}]
    with pytest.raises(EngineError, match=words):
        quick_stand_in.run(scenarios.generate, engines.gpu, PROMPTS, calls, Setup(skip=kernel))


def test_lost_context_stays_lost(quick_stand_in: StandIn, engines: Engines) -> None:
    first, *later = quick_stand_in.run(scenarios.lost_context, engines.gpu, PROMPTS)
    assert re.search(r"cuEventSynchronize failed: CUDA_ERROR_ILLEGAL_ADDRESS .*start it", first)
    assert len(later) == 2
    assert all(re.search("ILLEGAL_ADDRESS .*A kernel is at fault", text) for text in later)


@pytest.mark.slow
@pytest.mark.parametrize("scenario", [scenarios.on_second_gpu, scenarios.in_threads])
def test_contexts_follow_every_call(
    quick_stand_in: StandIn, engines: Engines, scenario: Callable[..., object]
) -> None:
    check_contexts(quick_stand_in, engines, scenario)


@pytest.mark.slow
def test_without_graphs(
    quick_stand_in: StandIn, engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = [{"max_tokens": 6}]
    captured, plain = (
        quick_stand_in.run(
            scenarios.generate, engines.gpu, PROMPTS, calls, Setup(), capture=capture
        )
        for capture in (True, False)
    )
    assert captured.tokens == plain.tokens
    assert plain.replays == 0 < captured.replays
    assert plain.launches > captured.launches


@pytest.mark.slow
def test_doctor_asks_the_driver(quick_stand_in: StandIn) -> None:
    old = quick_stand_in.run(scenarios.report_of_machine, Setup(version=12040, archs=(120, 80)))
    new = quick_stand_in.run(scenarios.report_of_machine, Setup())
    reasons = {report.arch: report.run for report in old.archs}
    assert [gpu.arch for gpu in old.gpus] == ["sm120", "sm80"]
    for arch in ("sm120", "sm80"):
        assert re.search(r"the driver is for CUDA 12\.4, and .* needs a driver", reasons[arch])
    reasons = {report.arch: report.run for report in new.archs}
    assert reasons["sm120"] is None
    assert "needs a GPU of sm80" in reasons["sm80"]
