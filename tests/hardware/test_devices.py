"""The GPUs that the driver lists: through cuda-bindings, and without that package."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest

from trtllm_dflash.errors import BuildError, EngineError
from trtllm_dflash.hardware import cuda_driver, devices
from trtllm_dflash.hardware.devices import Gpu

RTX_5090 = Gpu("NVIDIA GeForce RTX 5090", "sm120", 34_000_000_000)


class FakeLibrary:
    """A libcuda.so.1 with one RTX 5090, which writes through the pointers that it is given."""

    status = 0

    def cuInit(self, _: int) -> int:  # noqa: N802 - the driver's names, here and below
        return self.status

    def cuDriverGetVersion(self, version: Any) -> int:  # noqa: N802
        version._obj.value = 12040
        return 0

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = 1
        return 0

    def cuDeviceGet(self, device: Any, index: int) -> int:  # noqa: N802
        device._obj.value = index
        return 0

    def cuDeviceGetName(self, name: Any, *_: int) -> int:  # noqa: N802
        name.value = RTX_5090.name.encode()
        return 0

    def cuDeviceTotalMem_v2(self, memory: Any, _: int) -> int:  # noqa: N802
        memory._obj.value = RTX_5090.memory
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, _: int) -> int:  # noqa: N802
        value._obj.value = {75: 12, 76: 0}[attribute]
        return 0

    def cuDevicePrimaryCtxRetain(self, context: Any, device: int) -> int:  # noqa: N802
        context._obj.value = (77 << 40) + device
        return self.status

    def cuCtxSetCurrent(self, context: Any) -> int:  # noqa: N802
        self.current = context.value
        return 0

    def cuGetErrorName(self, status: int, text: Any) -> int:  # noqa: N802
        text._obj.value = b"CUDA_ERROR_NO_DEVICE" if status == 100 else None
        return 0

    def cuGetErrorString(self, status: int, text: Any) -> int:  # noqa: N802
        text._obj.value = b"no CUDA-capable device is detected" if status == 100 else None
        return 0


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> FakeLibrary:
    """Return the driver of a machine without cuda-bindings."""
    made = FakeLibrary()
    monkeypatch.setattr(cuda_driver, "_bindings", lambda: None)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: made)
    return made


def test_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> None:
        raise OSError("cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    monkeypatch.setattr(cuda_driver, "_bindings", lambda: None)
    assert devices.cuda_gpus() == "none: there is no NVIDIA driver (libcuda.so.1)"


def test_without_a_driver_but_with_bindings(monkeypatch: pytest.MonkeyPatch) -> None:
    class Bindings:
        def cuInit(self, _: int) -> None:  # noqa: N802
            raise RuntimeError('"cuda" can only be found via system search')

    monkeypatch.setattr(cuda_driver, "_bindings", Bindings)
    monkeypatch.setattr(cuda_driver, "_is_missing", lambda _: True)
    assert devices.cuda_gpus() == "none: there is no NVIDIA driver (libcuda.so.1)"
    monkeypatch.setattr(cuda_driver, "_is_missing", lambda _: False)
    words = (
        'none: the NVIDIA driver cannot be used ("cuda" can only be found via system search)'
    )
    assert devices.cuda_gpus() == words


def test_gpus_are_listed_without_bindings(library: FakeLibrary) -> None:
    assert devices.cuda_gpus() == [RTX_5090]


def test_version_of_the_driver(library: FakeLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices.driver_cuda_version() == (12, 4)
    monkeypatch.delattr(FakeLibrary, "cuDriverGetVersion")
    assert devices.driver_cuda_version() is None
    assert devices.format_driver((12, 4)) == "for CUDA 12.4"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "kernel module are of different drivers"),
        ("CUDA_ERROR_STUB_LIBRARY", "take it out"),
        ("CUDA_ERROR_SYSTEM_NOT_READY", "nvidia-fabricmanager must run"),
        ("CUDA_ERROR_NO_DEVICE", "CUDA_VISIBLE_DEVICES"),
        ("CUDA_ERROR_UNKNOWN", "nvidia-uvm"),
    ],
)
def test_errors_of_the_driver_have_names_and_advice(
    monkeypatch: pytest.MonkeyPatch, name: str, words: str
) -> None:
    pytest.importorskip("cuda.bindings.driver")
    from tests.runtime.fake_cuda import FakeDriver, real

    fake = FakeDriver()
    fake.fail["cuInit"] = getattr(real.CUresult, name)
    monkeypatch.setattr(cuda_driver, "_bindings", lambda: fake)
    found = devices.cuda_gpus()
    assert isinstance(found, str)
    assert name in found
    assert words in found


def test_a_device_is_chosen_without_bindings(library: FakeLibrary) -> None:
    devices.set_current_device(3)
    assert library.current == (77 << 40) + 3


def test_a_driver_that_fails(library: FakeLibrary) -> None:
    library.status = 100
    problem = "cuInit failed: CUDA_ERROR_NO_DEVICE (100: no CUDA-capable device is detected)"
    advice = "No GPU is visible: look at nvidia-smi, and at CUDA_VISIBLE_DEVICES."
    assert devices.cuda_gpus() == f"none: {problem}. {advice}"
    with pytest.raises(
        BuildError, match="GPU 3 cannot be used: cuInit failed: CUDA_ERROR_NO_DEV"
    ):
        devices.set_current_device(3)
    library.status = 999
    found = devices.cuda_gpus()
    assert isinstance(found, str)
    assert found.startswith("none: cuInit failed: CUDA_ERROR_UNKNOWN (999). ")
    assert "nvidia-uvm" in found


def test_gpus_are_listed_with_bindings(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cuda.bindings.driver")
    from tests.runtime.fake_cuda import FakeDriver

    fake = FakeDriver(capability=(9, 0), memory=1 << 37)
    monkeypatch.setattr(cuda_driver, "_bindings", lambda: fake)
    assert devices.cuda_gpus() == [Gpu("A GPU", "sm90", 1 << 37)]
    devices.set_current_device(0)
    assert fake.calls["cuCtxSetCurrent"] == 1
    fake.fail["cuDeviceGetCount"] = fake.CUresult.CUDA_ERROR_UNKNOWN
    found = devices.cuda_gpus()
    assert isinstance(found, str)
    assert found.startswith(
        "none: cuDeviceGetCount failed: CUDA_ERROR_UNKNOWN (999: cuda_error_unknown). Mostly"
    )


def test_a_session_needs_the_bindings(monkeypatch: pytest.MonkeyPatch) -> None:
    from trtllm_dflash.hardware.cuda import Cuda

    monkeypatch.setattr(cuda_driver, "_bindings", lambda: None)
    with pytest.raises(EngineError, match=r"need the Python package cuda-bindings.*\[rtx\]"):
        Cuda()
