"""The CUDA devices of this machine, as the driver lists them."""

from __future__ import annotations

from dataclasses import dataclass

from trtllm_dflash.errors import BuildError
from trtllm_dflash.hardware.cuda_driver import CudaDriver, CudaError, load_query_driver
from trtllm_dflash.log import human_bytes

_MAX_NAME = 128  # characters


@dataclass(frozen=True)
class Gpu:
    """A CUDA device; `arch` as in --arch."""

    name: str
    arch: str
    memory: int

    def __str__(self) -> str:
        return f"{self.name} ({self.arch}, {human_bytes(self.memory)})"


def first_gpu_index(arch: str) -> int:
    """Return the driver's number of the first GPU of `arch`, 0 if there is none."""
    gpus = cuda_gpus()
    archs = [] if isinstance(gpus, str) else [gpu.arch for gpu in gpus]
    return archs.index(arch) if arch in archs else 0


def has_gpu(arch: str, gpus: list[Gpu] | str) -> bool:
    """Tell whether `gpus` has one of `arch`; a text says why there are no GPUs."""
    return not isinstance(gpus, str) and arch in {gpu.arch for gpu in gpus}


def format_gpus(gpus: list[Gpu] | str) -> str:
    """Return the devices as text, or the reason why there are none."""
    return gpus if isinstance(gpus, str) else ", ".join(map(str, gpus)) or "no GPU"


def cuda_gpus() -> list[Gpu] | str:
    """Return the CUDA devices that the driver shows, or the reason why it shows none."""
    try:
        driver = load_query_driver()
        driver.call("cuInit", 0)
        count = driver.call("cuDeviceGetCount")
        return [_gpu(driver, index) for index in range(count)]
    except CudaError as error:
        advice = f". {error.advice}" if error.is_known else ""
        return f"none: {error.problem}{advice}"


def driver_cuda_version() -> tuple[int, int] | None:
    """Return the version of CUDA that the driver is for, None without a driver."""
    try:
        version = load_query_driver().call("cuDriverGetVersion")
    except (CudaError, AttributeError):  # no driver, or one so old that it lacks the function
        return None
    return version // 1000, version % 1000 // 10


def format_driver(version: tuple[int, int] | None) -> str:
    """Return the driver's version as text."""
    return "none" if version is None else f"for CUDA {version[0]}.{version[1]}"


def set_current_device(index: int) -> None:
    """Make the driver's GPU number `index` this thread's: TensorRT then builds for it.

    Raises:
        BuildError: with the driver's name of the error.
    """
    try:
        driver = load_query_driver()
        driver.call("cuInit", 0)
        context = driver.call("cuDevicePrimaryCtxRetain", driver.call("cuDeviceGet", index))
        driver.call("cuCtxSetCurrent", context)
    except CudaError as error:
        raise BuildError(f"GPU {index} cannot be used: {error}") from error


def arch_of(driver: CudaDriver, device: int) -> str:
    """Return a device's compute capability, as in --arch."""
    attributes = driver.types.CUdevice_attribute
    parts = (
        attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
        attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
    )
    major, minor = (driver.call("cuDeviceGetAttribute", part, device) for part in parts)
    return f"sm{major}{minor}"


def name_of(driver: CudaDriver, device: int) -> str:
    """Return a device's name."""
    name: bytes = driver.call("cuDeviceGetName", _MAX_NAME, device)
    return name.split(b"\0")[0].decode()


def _gpu(driver: CudaDriver, index: int) -> Gpu:
    device = driver.call("cuDeviceGet", index)
    memory = driver.call("cuDeviceTotalMem", device)
    return Gpu(name_of(driver, device), arch_of(driver, device), memory)
