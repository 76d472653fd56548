"""Launches through the CUDA driver: its calls in their order, and its errors."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import pytest

driver = pytest.importorskip("cuda.bindings.driver")
from trtllm_dflash.errors import EngineError
from trtllm_dflash.hardware import cuda_module
from trtllm_dflash.hardware.cuda_driver import load_driver
from trtllm_dflash.hardware.cuda_module import CudaModule, Launch, load_module
from trtllm_dflash.trt_plugins.params import AttentionParams

OK = driver.CUresult.CUDA_SUCCESS
KERNELS = ["small", "large"]
Calls = list[tuple[Any, ...]]
ATTRIBUTES = {
    "CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT": 132,
    "CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR": 233472,
}


def _no_driver() -> bool:
    try:
        driver.cuInit(0)
    except RuntimeError:
        return True
    return False


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Return the calls of a driver that accepts everything."""
    made: Calls = []
    answers: dict[str, Callable[..., Any]] = {
        "cuCtxGetCurrent": lambda: 5,
        "cuModuleLoadData": lambda cubin: ("module", cubin),
        "cuCtxGetDevice": lambda: 0,
        "cuDeviceGetAttribute": lambda attribute, _: ATTRIBUTES[attribute.name],
        "cuModuleGetFunction": lambda _, name: name.decode(),
        "cuFuncSetAttribute": lambda *_: None,
        "cuLaunchKernel": lambda *arguments: ctypes.cast(
            arguments[9], ctypes.POINTER(ctypes.c_void_p)
        )[0],
    }

    def fake(name: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> tuple[Any, ...]:
            answer = answers[name](*arguments)
            made.append(
                (name, *arguments, answer) if name == "cuLaunchKernel" else (name, *arguments)
            )
            return (OK,) if answer is None or name == "cuLaunchKernel" else (OK, answer)

        return call

    for name in answers:
        monkeypatch.setattr(driver, name, fake(name))
    monkeypatch.setattr(cuda_module, "_modules", {})
    return made


def _names(calls: Calls) -> list[str]:
    return [call[0] for call in calls]


def test_cubin_is_loaded_once_and_its_kernels_found(calls: Calls) -> None:
    first = load_module(b"cubin", KERNELS)
    assert (first.processors, first.processor_shared_bytes) == (132, 233472)
    assert _names(calls).count("cuModuleLoadData") == 1
    assert [call[2] for call in calls if call[0] == "cuModuleGetFunction"] == [
        b"small",
        b"large",
    ]
    assert load_module(b"cubin", KERNELS) is first
    assert load_module(b"another", KERNELS) is not first
    assert _names(calls).count("cuModuleLoadData") == 2


def test_launch_makes_one_driver_call(calls: Calls) -> None:
    """So it can be captured. More than 48 kB of shared memory are asked for once."""
    module = load_module(b"cubin", KERNELS)
    params = AttentionParams(batch=3)
    launches = [
        Launch("small", (4, 3, 2), 128, 1000, params),
        Launch("large", (1, 1, 1), 256, 60_000, params),
    ]
    calls.clear()
    module.launch(launches, 99)
    assert _names(calls) == ["cuLaunchKernel", "cuFuncSetAttribute", "cuLaunchKernel"]
    small, allowed, large = calls
    assert small[1:9] == ("small", 4, 3, 2, 128, 1, 1, 1000)
    assert small[9] == 99
    assert small[-1] == ctypes.addressof(params)
    assert allowed[1] == "large"
    assert allowed[3] == 60_000
    assert large[1:9] == ("large", 1, 1, 1, 256, 1, 1, 60_000)
    calls.clear()
    module.launch(launches, 99)
    assert _names(calls) == ["cuLaunchKernel", "cuLaunchKernel"]


def test_driver_error_keeps_its_words(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong_gpu = driver.CUresult.CUDA_ERROR_NO_BINARY_FOR_GPU

    def cuModuleLoadData(_: bytes) -> tuple[Any, ...]:  # noqa: N802 - the driver's name
        return wrong_gpu, None

    monkeypatch.setattr(driver, "cuModuleLoadData", cuModuleLoadData)
    monkeypatch.setattr(
        driver, "cuGetErrorString", lambda _: (OK, b"no kernel image is available")
    )
    words = r"cuModuleLoadData failed: CUDA_ERROR_NO_BINARY_FOR_GPU \(209: no kernel image is"
    for _ in range(2):  # what failed to load is not kept
        with pytest.raises(EngineError, match=words):
            load_module(b"cubin", KERNELS)


def test_bindings_accept_the_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a driver every call fails, but only behind the conversion of its arguments."""
    if not _no_driver():
        pytest.skip("there is a driver, and it would run this")
    module = object.__new__(CudaModule)
    module._driver, module._shared_bytes = load_driver(), {}
    module._functions = {"large": driver.CUfunction(1)}
    launches = [Launch("large", (1, 2, 3), 128, 60_000, AttentionParams())]
    with pytest.raises(EngineError, match="cuFuncSetAttribute: there is no NVIDIA driver"):
        module.launch(launches, 0)
    module._shared_bytes = {"large": 60_000}
    with pytest.raises(EngineError, match="cuLaunchKernel: there is no NVIDIA driver"):
        module.launch(launches, 0)
    with pytest.raises(EngineError, match="cuCtxGetCurrent: there is no NVIDIA driver"):
        load_module(b"cubin", KERNELS)
    for name, arguments in (
        ("cuModuleLoadData", [b"cubin"]),
        ("cuModuleGetFunction", [driver.CUmodule(1), b"k"]),
    ):
        with pytest.raises(EngineError, match=f"{name}: there is no NVIDIA driver"):
            load_driver().call(name, *arguments)
