"""Kernels out of a cubin, launched on a stream without allocating or waiting."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trtllm_dflash.hardware.cuda_driver import CudaDriver, load_driver

_DEFAULT_SHARED_BYTES = 48 << 10  # dynamic shared memory that every kernel may have

_modules: dict[tuple[int, str], CudaModule] = {}


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel: its name in the cubin, and what it is launched with."""

    kernel: str
    grid: tuple[int, int, int]
    threads: int  # of a CTA
    shared_bytes: int  # dynamic shared memory
    params: ctypes.Structure  # the kernel's one argument


class CudaModule:
    """A cubin loaded into the calling thread's CUDA context, with some of its kernels."""

    def __init__(self, driver: CudaDriver, cubin: bytes, kernels: Sequence[str]) -> None:
        """Find the kernels now, so that a launch inside a stream capture loads nothing."""
        self._driver = driver
        self._cubin = cubin  # the driver may read it after it has loaded it
        self._module = driver.call("cuModuleLoadData", cubin)
        self._functions: dict[str, Any] = {
            kernel: driver.call("cuModuleGetFunction", self._module, kernel.encode())
            for kernel in kernels
        }
        self._shared_bytes: dict[str, int] = {}
        of_device = driver.types.CUdevice_attribute
        processors = of_device.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT
        shared_bytes = of_device.CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR
        device = driver.call("cuCtxGetDevice")
        self.processors: int = driver.call("cuDeviceGetAttribute", processors, device)
        self.processor_shared_bytes: int = driver.call(
            "cuDeviceGetAttribute", shared_bytes, device
        )

    def launch(self, launches: Sequence[Launch], stream: int) -> None:
        """Put the launches on a stream, in order.

        Raises:
            CudaError: if the driver refuses one; those before it are on the stream.
        """
        for launch in launches:
            function = self._functions[launch.kernel]
            self._allow_shared(launch, function)
            # The driver copies the parameters before it returns.
            arguments = (ctypes.c_void_p * 1)(ctypes.addressof(launch.params))
            shape = (*launch.grid, launch.threads, 1, 1, launch.shared_bytes)
            address = ctypes.addressof(arguments)
            self._driver.call("cuLaunchKernel", function, *shape, stream, address, 0)

    def _allow_shared(self, launch: Launch, function: Any) -> None:
        allowed = self._shared_bytes.get(launch.kernel, _DEFAULT_SHARED_BYTES)
        if launch.shared_bytes <= allowed:
            return
        attributes = self._driver.types.CUfunction_attribute
        attribute = attributes.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        self._driver.call("cuFuncSetAttribute", function, attribute, launch.shared_bytes)
        self._shared_bytes[launch.kernel] = launch.shared_bytes


def load_module(cubin: bytes, kernels: Sequence[str]) -> CudaModule:
    """Return the cubin in the current CUDA context, loaded once for all layers that use it.

    Raises:
        EngineError: if there is no driver or context, if the cubin is for another GPU, or if it
            lacks a kernel.
    """
    driver = load_driver()
    context = int(driver.call("cuCtxGetCurrent"))
    key = (context, hashlib.sha256(cubin).hexdigest())
    if key not in _modules:
        _modules[key] = CudaModule(driver, cubin, kernels)
    return _modules[key]
