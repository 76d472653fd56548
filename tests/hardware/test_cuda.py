"""The wrapper of the CUDA driver: what is checked, freed, and allowed to other threads."""

from __future__ import annotations

import threading

import numpy as np
import pytest

pytest.importorskip("cuda.bindings.driver")

from tests.runtime.fake_cuda import FakeDriver
from trtllm_dflash.errors import EngineError
from trtllm_dflash.hardware import cuda_driver
from trtllm_dflash.hardware.cuda import Cuda


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    fake = FakeDriver(capability=(8, 9))
    monkeypatch.setattr(cuda_driver, "_bindings", lambda: fake)
    return fake


def test_memory_is_zeroed_when_the_stream_gets_there(driver: FakeDriver) -> None:
    gpu = Cuda()
    address, host = gpu.allocate(16, "a test"), gpu.allocate_pinned(16, "a test")
    host[:] = 5
    gpu.copy(host.ctypes.data, address, 16)
    assert (host == 5).all()
    gpu.synchronize()
    assert (host == 0).all()


def test_rows_are_copied_between_pitches(driver: FakeDriver) -> None:
    gpu = Cuda()
    host = gpu.allocate_pinned(24, "a test")
    host[:] = np.arange(24)
    src, dst = gpu.allocate(24, "a test"), gpu.allocate(12, "a test")
    gpu.copy(src, host.ctypes.data, 24)
    gpu.copy_rows(dst, 4, src, 8, row_bytes=3, rows=3)
    gpu.copy(host.ctypes.data, dst, 12)
    gpu.synchronize()
    assert host[:12].tolist() == [0, 1, 2, 0, 8, 9, 10, 0, 16, 17, 18, 0]


def test_capture_runs_when_it_is_launched(driver: FakeDriver) -> None:
    gpu = Cuda()
    host, target = gpu.allocate_pinned(8, "a test"), gpu.allocate(8, "a test")
    launch = gpu.capture(lambda: gpu.copy(host.ctypes.data, target, 8))
    gpu.synchronize()
    host[:] = 3
    gpu.synchronize()
    assert (host == 3).all()
    launch()
    gpu.synchronize()
    assert (host == 0).all()


def test_failed_capture_is_over(driver: FakeDriver) -> None:
    gpu = Cuda()
    with pytest.raises(
        EngineError, match=r"cuStreamSynchronize failed: CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"
    ):
        gpu.capture(gpu.synchronize)
    gpu.synchronize()


def test_copy_beyond_its_memory_is_an_error(driver: FakeDriver) -> None:
    gpu = Cuda()
    small, large = gpu.allocate(8, "a test"), gpu.allocate(16, "a test")
    words = r"cuMemcpyAsync failed: CUDA_ERROR_INVALID_VALUE \(1: .*\)\. dflash-trt doctor"
    with pytest.raises(EngineError, match=words):
        gpu.copy(small, large, 16)


def test_every_thread_gets_the_context(driver: FakeDriver) -> None:
    """Four in turn: the system uses the identities of threads that have ended again."""
    gpu = Cuda()
    failures: list[BaseException] = []

    def allocate() -> None:
        try:
            gpu.make_current()
            gpu.allocate(8, "a test")
        except EngineError as error:
            failures.append(error)

    for _ in range(4):
        thread = threading.Thread(target=allocate)
        thread.start()
        thread.join()
    assert failures == []


def test_each_gpus_work_happens_in_its_own_context(driver: FakeDriver) -> None:
    """Two GPUs in turn in one thread, and another library that makes its own context current."""
    first, second = Cuda(0), Cuda(1)
    driver.used.clear()
    for gpu in (first, second, first):
        gpu.make_current()
        gpu.allocate(8, "a test")
    driver.cuCtxSetCurrent("somebody else's")
    second.make_current()
    second.allocate(8, "a test")
    assert [context for name, context in driver.used if name == "cuMemAlloc"] == [
        "context 0",
        "context 1",
        "context 0",
        "context 1",
    ]
    driver.cuCtxSetCurrent("somebody else's")
    driver.used.clear()
    del first, gpu
    freed = {context for name, context in driver.used if name == "cuMemFree"}
    assert freed == {"context 0"}
    assert driver.cuCtxGetCurrent()[1] == "somebody else's"


def test_everything_is_freed_at_the_end(driver: FakeDriver) -> None:
    gpu = Cuda()
    before = driver.free
    gpu.allocate(1000, "a test")
    gpu.allocate_pinned(1000, "a test")
    gpu.new_event()
    assert driver.free == before - 2000
    del gpu
    assert driver.free == before
    assert driver.calls["cuEventDestroy"] == driver.calls["cuStreamDestroy"] == 1


def test_the_arch(driver: FakeDriver) -> None:
    assert Cuda().arch == "sm89"
