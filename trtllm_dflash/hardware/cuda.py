"""The little of the CUDA driver that a GPU session needs: memory, one stream, events, graphs. Every
call is checked.

Addresses are plain integers, of device memory and of pinned host memory alike: CUDA tells them
apart by their value.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtllm_dflash.errors import EngineError, install_command
from trtllm_dflash.log import human_bytes

try:
    from cuda.bindings import driver
except ImportError as error:
    raise EngineError(
        f"GPU engines need the Python package cuda-bindings, which is not here ({error}):"
        f" {install_command('rtx')}"
    ) from error

ALIGNMENT = 256  # of every allocation of CUDA's, and of every address that TensorRT is given

_HINTS = {
    "CUDA_ERROR_NO_DEVICE": "No GPU is visible: look at nvidia-smi, and at CUDA_VISIBLE_DEVICES.",
    "CUDA_ERROR_OUT_OF_MEMORY": (
        "Free GPU memory, or build with a smaller --max-batch-size or --max-seq-len."
    ),
    "CUDA_ERROR_ILLEGAL_ADDRESS": (
        "A kernel is at fault, and this process can use the GPU no more: start it again."
    ),
    "CUDA_ERROR_LAUNCH_FAILED": (
        "A kernel is at fault, and this process can use the GPU no more: start it again."
    ),
}
_OTHERWISE = "dflash-trt doctor shows what this machine has."


class Cuda:
    """One GPU: its primary context, and one stream on which all work of a session runs in order.

    Everything that it gives out lives as long as the object does. Every failure is an EngineError
    with CUDA's own name for it.
    """

    def __init__(self, ordinal: int = 0) -> None:
        """Open GPU number `ordinal` among those that the driver shows."""
        try:
            self._call("cuInit", 0)
        except (
            RuntimeError,
            OSError,
        ) as error:  # what the bindings raise where there is no driver to call
            raise EngineError(
                f"there is no NVIDIA driver on this machine ({error}). {_OTHERWISE}"
            ) from error
        self._device = self._call("cuDeviceGet", ordinal)
        self._context = self._call("cuDevicePrimaryCtxRetain", self._device)
        self._thread: int | None = None
        self._held: list[
            tuple[Callable[[Any], Any], Any]
        ] = []  # what to free at the end, in reverse
        self.make_current()
        self._stream = self._hold("cuStreamDestroy", self._call("cuStreamCreate", _NON_BLOCKING))
        self.stream = int(self._stream)
        weakref.finalize(self, _release, self._context, self._held).atexit = False

    @property
    def arch(self) -> str:
        """The GPU's compute capability, as in --arch."""
        kinds = driver.CUdevice_attribute
        major = self._call(
            "cuDeviceGetAttribute", kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, self._device
        )
        minor = self._call(
            "cuDeviceGetAttribute", kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, self._device
        )
        return f"sm{major}{minor}"

    def make_current(self) -> None:
        """Let the calling thread use this GPU; a context belongs to threads, and callers come from
        any.
        """
        if self._thread != threading.get_ident():
            self._call("cuCtxSetCurrent", self._context)
            self._thread = threading.get_ident()

    def allocate(self, nbytes: int, purpose: str) -> int:
        """Zeroed device memory; `purpose` is what an error says it was for."""
        status, address = driver.cuMemAlloc(nbytes)
        if int(status) != 0:
            free, total = self._call("cuMemGetInfo")
            raise EngineError(
                f"{human_bytes(nbytes)} of GPU memory for {purpose} could not be had"
                f" ({_name(status)}): {human_bytes(free)} of {human_bytes(total)} are free."
                f" {_HINTS['CUDA_ERROR_OUT_OF_MEMORY']}"
            )
        self._hold("cuMemFree", address)
        self._call("cuMemsetD8Async", address, 0, nbytes, self._stream)
        return int(address)

    def allocate_pinned(self, nbytes: int) -> NDArray[np.uint8]:
        """Zeroed host memory that the GPU reads and writes while the host goes on."""
        address = int(self._hold("cuMemFreeHost", self._call("cuMemAllocHost", nbytes)))
        memory = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))
        memory[:] = 0
        return memory

    def copy(self, dst: int, src: int, nbytes: int) -> None:
        """Copy between any two places when the stream gets there."""
        self._call("cuMemcpyAsync", dst, src, nbytes, self._stream)

    def copy_rows(
        self,
        dst: int,
        dst_pitch: int,
        src: int,
        src_pitch: int,
        *,
        row_bytes: int,
        rows: int,
    ) -> None:
        """Copy `rows` pieces of `row_bytes`, which lie `…_pitch` bytes apart, within device
        memory.
        """
        area = driver.CUDA_MEMCPY2D()
        area.srcMemoryType = area.dstMemoryType = driver.CUmemorytype.CU_MEMORYTYPE_DEVICE
        area.srcDevice, area.srcPitch = src, src_pitch
        area.dstDevice, area.dstPitch = dst, dst_pitch
        area.WidthInBytes, area.Height = row_bytes, rows
        self._call("cuMemcpy2DAsync", area, self._stream)

    def synchronize(self) -> None:
        """Wait until the stream has done everything."""
        self._call("cuStreamSynchronize", self._stream)

    def new_event(self) -> Any:
        """A mark to set in the stream and to wait for."""
        return self._hold("cuEventDestroy", self._call("cuEventCreate", _DISABLE_TIMING))

    def record_event(self, event: Any) -> None:
        """Set the mark behind all that is in the stream now."""
        self._call("cuEventRecord", event, self._stream)

    def wait_event(self, event: Any) -> None:
        """Wait until the stream has passed the mark."""
        self._call("cuEventSynchronize", event)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record what `work` puts into the stream, which does not run meanwhile; returns what puts
        it there at once.
        """
        # Only this thread is watched for calls that a capture forbids: what others do is none of
        # its business.
        self._call(
            "cuStreamBeginCapture",
            self._stream,
            driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL,
        )
        try:
            work()
        except BaseException:
            driver.cuStreamEndCapture(self._stream)
            raise
        graph = self._call("cuStreamEndCapture", self._stream)
        executable = self._hold("cuGraphExecDestroy", self._call("cuGraphInstantiate", graph, 0))
        self._call("cuGraphDestroy", graph)
        return lambda: self._call("cuGraphLaunch", executable, self._stream)

    def _hold(self, destroy: str, handle: Any) -> Any:
        self._held.append((getattr(driver, destroy), handle))
        return handle

    def _call(self, name: str, *arguments: Any) -> Any:
        """What the driver's function returns besides its status: nothing, a value, or a tuple of
        several.
        """
        status, *values = getattr(driver, name)(*arguments)
        if int(status) != 0:
            raise EngineError(
                f"{name}: the GPU's driver answers {_name(status)}."
                f" {_HINTS.get(_key(status), _OTHERWISE)}"
            )
        return values[0] if len(values) == 1 else tuple(values) or None


_NON_BLOCKING = driver.CUstream_flags.CU_STREAM_NON_BLOCKING
_DISABLE_TIMING = driver.CUevent_flags.CU_EVENT_DISABLE_TIMING


def _key(status: Any) -> str:
    return getattr(
        status, "name", "CUDA_ERROR_UNKNOWN"
    )  # a driver newer than the bindings may know more


def _name(status: Any) -> str:
    """CUDA's name, number and description of an error."""
    description = driver.cuGetErrorString(status)[1]
    text = f": {description.decode()}" if description else ""
    return f"{_key(status)} ({int(status)}{text})"


def _release(context: Any, held: list[tuple[Callable[[Any], Any], Any]]) -> None:
    driver.cuCtxPushCurrent(context)  # whatever thread collects the garbage
    for destroy, handle in reversed(held):
        destroy(handle)
    driver.cuCtxPopCurrent()
