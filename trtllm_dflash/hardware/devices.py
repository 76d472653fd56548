"""The CUDA devices of this machine, through the driver alone: nothing of CUDA need be installed to
look.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

from trtllm_dflash.errors import BuildError
from trtllm_dflash.log import human_bytes

_CUDA_DRIVER = "libcuda.so.1"
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # CUdevice_attribute


@dataclass(frozen=True)
class Gpu:
    """A CUDA device; `arch` as in --arch."""

    name: str
    arch: str
    memory: int

    def __str__(self) -> str:
        return f"{self.name} ({self.arch}, {human_bytes(self.memory)})"


def first_gpu(arch: str) -> int:
    """The driver's number of the first GPU of `arch`; 0 if there is none."""
    gpus = cuda_gpus()
    archs = [] if isinstance(gpus, str) else [gpu.arch for gpu in gpus]
    return archs.index(arch) if arch in archs else 0


def has_gpu(arch: str, gpus: list[Gpu] | str) -> bool:
    """Whether there is a GPU of `arch` among `gpus`: the devices, or in words why there are
    none.
    """
    return not isinstance(gpus, str) and arch in {gpu.arch for gpu in gpus}


def format_gpus(gpus: list[Gpu] | str) -> str:
    """The devices, or why there are none."""
    return gpus if isinstance(gpus, str) else ", ".join(map(str, gpus)) or "no GPU"


def cuda_gpus() -> list[Gpu] | str:
    """The CUDA devices that the driver shows, or in words why it shows none."""
    try:
        driver = ctypes.CDLL(_CUDA_DRIVER)
    except OSError:
        return f"none: there is no NVIDIA driver ({_CUDA_DRIVER})"
    status = driver.cuInit(0)
    if status != 0:
        return f"none: the NVIDIA driver answers with error {status}"
    return [_gpu(driver, index) for index in range(_number(driver.cuDeviceGetCount))]


def set_current_device(index: int) -> None:
    """Make the driver's GPU number `index` this thread's, which is the one that TensorRT then
    builds for.

    Raises:
        BuildError: with the driver's error number.
    """
    driver, context = ctypes.CDLL(_CUDA_DRIVER), ctypes.c_void_p()
    driver.cuInit(0)
    device = _number(driver.cuDeviceGet, index)
    status = driver.cuDevicePrimaryCtxRetain(
        ctypes.byref(context), device
    ) or driver.cuCtxSetCurrent(context)
    if status != 0:
        raise BuildError(
            f"GPU {index} cannot be used: the NVIDIA driver answers with error {status}"
        )


def _gpu(driver: ctypes.CDLL, index: int) -> Gpu:
    name, memory = ctypes.create_string_buffer(128), ctypes.c_size_t()
    device = _number(driver.cuDeviceGet, index)
    driver.cuDeviceGetName(name, len(name), device)
    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    major = _number(driver.cuDeviceGetAttribute, _CAPABILITY_MAJOR, device)
    minor = _number(driver.cuDeviceGetAttribute, _CAPABILITY_MINOR, device)
    return Gpu(name.value.decode(), f"sm{major}{minor}", memory.value)


def _number(function: Any, *arguments: int) -> int:
    """Call a driver function that writes an int through its first argument."""
    value = ctypes.c_int()
    function(ctypes.byref(value), *arguments)
    return value.value
