"""Kernels out of a cubin onto a stream, through the CUDA driver: nothing is allocated and nothing
waited for.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Sequence
from typing import Any

from trtllm_dflash.errors import EngineError, install_command
from trtllm_dflash.trt_plugins.launch_config import Launch

_WITHOUT_ASKING = 48 << 10  # dynamic shared memory that every kernel may have


class Module:
    """A cubin loaded into one CUDA context."""

    def __init__(self, cubin: bytes) -> None:
        from cuda.bindings import driver

        self._driver = driver
        self._cubin = cubin  # the driver may read it later than it loads it
        self._module = _call(driver.cuModuleLoadData, cubin)
        self._functions: dict[str, Any] = {}
        self._shared_bytes: dict[str, int] = {}
        device = _call(driver.cuCtxGetDevice)
        attribute = driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT
        self.processors: int = _call(driver.cuDeviceGetAttribute, attribute, device)

    def resolve(self, kernels: Sequence[str]) -> None:
        """Find kernels by name now, so that a launch inside a stream capture loads nothing."""
        for kernel in kernels:
            self._functions[kernel] = _call(
                self._driver.cuModuleGetFunction, self._module, kernel.encode()
            )

    def launch(self, launches: Sequence[Launch], stream: int) -> None:
        """Put the launches on a stream, in order.

        Raises:
            EngineError: if the driver refuses one; those before it are on the stream.
        """
        for launch in launches:
            function = self._functions[launch.kernel]
            self._allow_shared(launch, function)
            # The driver copies the parameters before it returns.
            arguments = (ctypes.c_void_p * 1)(ctypes.addressof(launch.params))
            threads = (launch.threads, 1, 1)
            _call(
                self._driver.cuLaunchKernel,
                function, *launch.grid, *threads, launch.shared_bytes, stream, ctypes.addressof(arguments), 0,
            )  # fmt: skip

    def _allow_shared(self, launch: Launch, function: Any) -> None:
        if launch.shared_bytes <= self._shared_bytes.get(launch.kernel, _WITHOUT_ASKING):
            return
        attribute = (
            self._driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        )
        _call(self._driver.cuFuncSetAttribute, function, attribute, launch.shared_bytes)
        self._shared_bytes[launch.kernel] = launch.shared_bytes


_modules: dict[tuple[int, str], Module] = {}


def load(cubin: bytes, kernels: Sequence[str]) -> Module:
    """The cubin in the current CUDA context, loaded once for all layers that use it, its kernels
    found.

    Raises: EngineError: if there is no driver or context, if the cubin is for another GPU, if a
    kernel is not in it.
    """
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise EngineError(
            "running plugins needs cuda-bindings, which is not installed here:"
            f" {install_command('rtx')}"
        ) from error
    context = int(_call(driver.cuCtxGetCurrent))
    key = (context, hashlib.sha256(cubin).hexdigest())
    if key not in _modules:
        module = Module(cubin)
        module.resolve(kernels)
        _modules[key] = module
    return _modules[key]


def _call(function: Any, *arguments: Any) -> Any:
    """Call a driver function; its result, or EngineError with the driver's words."""
    from cuda.bindings import driver

    try:
        status, *results = function(*arguments)
    except RuntimeError as error:  # there is no libcuda
        raise EngineError(f"{function.__name__}: the NVIDIA driver is not here: {error}") from error
    if status != driver.CUresult.CUDA_SUCCESS:
        _, words = driver.cuGetErrorString(status)
        raise EngineError(f"{function.__name__}: {words.decode() if words else ''} ({status.name})")
    return results[0] if results else None
