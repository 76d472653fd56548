"""The CUDA driver's functions, every call checked, with one format of errors.

The functions are those of cuda-bindings. Without that package a few of them come through ctypes, so
that `dflash-trt doctor` finds the GPUs in a plain installation.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from enum import IntEnum
from typing import Any

from trtllm_dflash.errors import EngineError, install_command

LIBRARY = "libcuda.so.1"
NO_DRIVER = f"there is no NVIDIA driver ({LIBRARY})"
_BAD_KERNEL = "A kernel is at fault, and this process can use the GPU no more: start it again."
_NEWER_DRIVER = "The driver is too old for this CUDA: install a newer one."
LESS_MEMORY = "Free GPU memory, or build with a smaller --max-batch-size or --max-seq-len"
_ADVICE = {
    "CUDA_ERROR_NO_DEVICE": "No GPU is visible: look at nvidia-smi, and at CUDA_VISIBLE_DEVICES.",
    "CUDA_ERROR_INVALID_DEVICE": "Look at CUDA_VISIBLE_DEVICES.",
    "CUDA_ERROR_STUB_LIBRARY": (
        "A stub of libcuda is in LD_LIBRARY_PATH before the driver's own: take it out."
    ),
    "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH": (
        "libcuda and the loaded kernel module are of different drivers: restart the machine, or"
        " take a compat library out of LD_LIBRARY_PATH."
    ),
    "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE": (
        "This GPU takes no compat library: take it out of LD_LIBRARY_PATH, and install a newer"
        " driver."
    ),
    "CUDA_ERROR_SYSTEM_NOT_READY": (
        "The driver is not ready: on machines with NVSwitch nvidia-fabricmanager must run."
    ),
    "CUDA_ERROR_DEVICE_UNAVAILABLE": "Another process has the GPU for itself: see nvidia-smi.",
    "CUDA_ERROR_UNSUPPORTED_PTX_VERSION": _NEWER_DRIVER,
    "CUDA_ERROR_NO_BINARY_FOR_GPU": "This was compiled for another GPU: build the engine again.",
    "CUDA_ERROR_UNKNOWN": (
        "Mostly the kernel module nvidia-uvm is not loaded, or /dev/nvidia-uvm is not in the"
        " container: try nvidia-modprobe -u -c=0, or restart the machine."
    ),
    "CUDA_ERROR_OUT_OF_MEMORY": f"{LESS_MEMORY}.",
    "CUDA_ERROR_ILLEGAL_ADDRESS": _BAD_KERNEL,
    "CUDA_ERROR_LAUNCH_FAILED": _BAD_KERNEL,
}
_DEFAULT_ADVICE = "dflash-trt doctor shows what this machine has."


class CudaError(EngineError):
    """A call of the CUDA driver failed: `problem` is what happened, `advice` what to do."""

    def __init__(self, problem: str, advice: str = _DEFAULT_ADVICE) -> None:
        super().__init__(f"{problem}. {advice}")
        self.problem = problem
        self.advice = advice

    @property
    def is_known(self) -> bool:
        """Tell whether the advice is about this error, and not the general one."""
        return self.advice != _DEFAULT_ADVICE


class CudaDriver:
    """Checked calls of the driver's functions; `types` holds its enumerations and structures."""

    def __init__(self, functions: Any) -> None:
        """`functions`: the module `cuda.bindings.driver`, or what stands in for it."""
        self.types = functions

    def call(self, name: str, *arguments: Any, action: str = "") -> Any:
        """Call a function and return its results: None, one value, or a tuple of several.

        `action` begins the error's text: "failed to …". By default that is "<name> failed".

        Raises:
            CudaError: if there is no driver, or with the driver's name of the error.
        """
        function = getattr(self.types, name)
        try:
            status, *values = function(*arguments)
        except (
            RuntimeError,
            OSError,
        ) as error:  # of cuda-bindings, where no driver can be called
            missing = _is_missing(LIBRARY)
            problem = NO_DRIVER if missing else f"the NVIDIA driver cannot be used ({error})"
            raise CudaError(f"{name}: {problem}" if name != "cuInit" else problem) from error
        if int(status) != 0:
            # A driver newer than the bindings may have errors that these do not know.
            code = getattr(status, "name", "CUDA_ERROR_UNKNOWN")
            problem = f"{action or f'{name} failed'}: {code} ({self._describe(status)})"
            raise CudaError(problem, _ADVICE.get(code, _DEFAULT_ADVICE))
        return values[0] if len(values) == 1 else tuple(values) or None

    def _describe(self, status: Any) -> str:
        description = self.types.cuGetErrorString(status)[1]
        return f"{int(status)}: {description.decode()}" if description else f"{int(status)}"


def load_driver() -> CudaDriver:
    """Return the driver with all of its functions.

    Raises:
        EngineError: if cuda-bindings is not installed.
    """
    bindings = _bindings()
    if bindings is None:
        raise EngineError(
            "GPU engines need the Python package cuda-bindings, which is not installed here:"
            f" {install_command('rtx')}"
        )
    return CudaDriver(bindings)


def load_query_driver() -> CudaDriver:
    """Return the driver with what finds GPUs and chooses one; this needs no Python package.

    Raises:
        CudaError: if there is no driver, and cuda-bindings is not installed.
    """
    bindings = _bindings()
    if bindings is not None:
        return CudaDriver(bindings)
    try:
        return CudaDriver(_QueryFunctions(ctypes.CDLL(LIBRARY)))
    except OSError as error:
        raise CudaError(NO_DRIVER) from error


def _bindings() -> Any:
    try:
        from cuda.bindings import driver
    except ImportError:
        return None
    return driver


def _is_missing(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return True
    return False


class _DeviceAttribute(IntEnum):
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76


class _Status(int):
    """A CUresult with the driver's own name for it."""

    name = "CUDA_ERROR_UNKNOWN"


class _QueryFunctions:
    """Some of the driver's functions through ctypes, called as those of cuda.bindings are."""

    CUdevice_attribute = _DeviceAttribute

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def __getattr__(self, name: str) -> Callable[..., Any]:
        symbol, result_type = {
            "cuDriverGetVersion": ("cuDriverGetVersion", ctypes.c_int),
            "cuDeviceGetCount": ("cuDeviceGetCount", ctypes.c_int),
            "cuDeviceGet": ("cuDeviceGet", ctypes.c_int),
            "cuDeviceGetAttribute": ("cuDeviceGetAttribute", ctypes.c_int),
            "cuDeviceTotalMem": ("cuDeviceTotalMem_v2", ctypes.c_size_t),
            "cuDevicePrimaryCtxRetain": ("cuDevicePrimaryCtxRetain", ctypes.c_void_p),
        }[name]

        def call(*arguments: int) -> tuple[_Status, int | None]:
            result: Any = result_type()
            status = getattr(self._library, symbol)(ctypes.byref(result), *arguments)
            return self._status(status), result.value

        return call

    def cuInit(self, flags: int) -> tuple[_Status]:  # noqa: N802 - the driver's names
        return (self._status(self._library.cuInit(flags)),)

    def cuCtxSetCurrent(self, context: int) -> tuple[_Status]:  # noqa: N802
        return (self._status(self._library.cuCtxSetCurrent(ctypes.c_void_p(context))),)

    def cuDeviceGetName(self, length: int, device: int) -> tuple[_Status, bytes]:  # noqa: N802
        name = ctypes.create_string_buffer(length)
        return self._status(self._library.cuDeviceGetName(name, length, device)), name.value

    def cuGetErrorString(self, status: int) -> tuple[int, bytes | None]:  # noqa: N802
        return 0, self._text("cuGetErrorString", status)

    def _text(self, function: str, status: int) -> bytes | None:
        text = ctypes.c_char_p()
        getattr(self._library, function)(int(status), ctypes.byref(text))
        return text.value

    def _status(self, status: int) -> _Status:
        made = _Status(status)
        if status != 0:
            made.name = (self._text("cuGetErrorName", status) or made.name.encode()).decode()
        return made
