"""What a GPU session needs of CUDA: memory, one stream, events and graphs.

Addresses are plain integers, of device memory and of pinned host memory alike. CUDA tells them
apart by their value.

cuda.core would offer most of this. It has no copy between pitches, and it calls the driver from
compiled code, so that no test could put another driver in its place.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtllm_dflash.hardware.cuda_driver import CudaDriver, CudaError, load_driver
from trtllm_dflash.hardware.devices import arch_of, name_of
from trtllm_dflash.log import human_bytes

ALIGNMENT = 256  # of every allocation of CUDA's, and of every address that TensorRT is given


class Cuda:
    """One GPU: its primary context, and one stream in which all work of a session runs in order.

    What it allocates lives as long as the object. Every failure is a CudaError.
    """

    def __init__(self, ordinal: int = 0) -> None:
        """Open GPU number `ordinal` among those that the driver shows."""
        self._driver = load_driver()
        self._types = self._driver.types
        self._call("cuInit", 0)
        self._device = self._call("cuDeviceGet", ordinal)
        self._context = self._call("cuDevicePrimaryCtxRetain", self._device)
        self._held: list[tuple[str, Any]] = []  # what frees a handle, and the handle
        self.make_current()
        flags = self._types.CUstream_flags.CU_STREAM_NON_BLOCKING
        self._stream = self._hold("cuStreamDestroy", self._call("cuStreamCreate", flags))
        self.stream = int(self._stream)
        free = weakref.finalize(self, _release, self._driver, self._context, self._held)
        free.atexit = False

    @property
    def arch(self) -> str:
        """Return the GPU's compute capability, as in --arch."""
        return arch_of(self._driver, self._device)

    @property
    def name(self) -> str:
        """Return the GPU's name."""
        return name_of(self._driver, self._device)

    def make_current(self) -> None:
        """Make this GPU the calling thread's; callers come from any thread.

        What is current is set and never remembered: another engine or library may have changed it,
        and the system uses the identities of threads again. It is a write to the thread's memory.
        """
        self._call("cuCtxSetCurrent", self._context)

    def allocate(self, nbytes: int, purpose: str) -> int:
        """Return the address of zeroed device memory; `purpose` is for the error's text."""
        action = f"failed to allocate {human_bytes(nbytes)} of GPU memory for {purpose}"
        try:
            address = self._call("cuMemAlloc", nbytes, action=action)
        except CudaError as error:
            free, total = self._call("cuMemGetInfo")
            problem = f"{error.problem}; {human_bytes(free)} of {human_bytes(total)} are free"
            raise CudaError(problem, error.advice) from None
        self._hold("cuMemFree", address)
        self.clear(address, nbytes)
        return int(address)

    def free_bytes(self) -> int:
        """Return the GPU's memory that nobody has allocated."""
        free, _ = self._call("cuMemGetInfo")
        return int(free)

    def clear(self, address: int, nbytes: int) -> None:
        """Set device memory to 0 when the stream gets there."""
        self._call("cuMemsetD8Async", address, 0, nbytes, self._stream)

    def allocate_pinned(self, nbytes: int, purpose: str) -> NDArray[np.uint8]:
        """Return zeroed host memory that the GPU reads and writes while the host goes on."""
        action = f"failed to allocate {human_bytes(nbytes)} of pinned memory for {purpose}"
        address = int(
            self._hold("cuMemFreeHost", self._call("cuMemAllocHost", nbytes, action=action))
        )
        memory = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))
        memory[:] = 0
        return memory

    def copy(self, dst: int, src: int, nbytes: int) -> None:
        """Copy between any two places when the stream gets there."""
        self._call("cuMemcpyAsync", dst, src, nbytes, self._stream)

    def copy_rows(
        self, dst: int, dst_pitch: int, src: int, src_pitch: int, *, row_bytes: int, rows: int
    ) -> None:
        """Copy `rows` rows of `row_bytes` within device memory; pitches are in bytes."""
        area = self._types.CUDA_MEMCPY2D()
        area.srcMemoryType = area.dstMemoryType = self._types.CUmemorytype.CU_MEMORYTYPE_DEVICE
        area.srcDevice = src
        area.srcPitch = src_pitch
        area.dstDevice = dst
        area.dstPitch = dst_pitch
        area.WidthInBytes = row_bytes
        area.Height = rows
        self._call("cuMemcpy2DAsync", area, self._stream)

    def synchronize(self) -> None:
        """Wait until the stream has done everything."""
        self._call("cuStreamSynchronize", self._stream)

    def new_event(self) -> Any:
        """Return an event to record in the stream and to wait for."""
        flags = self._types.CUevent_flags.CU_EVENT_DISABLE_TIMING
        return self._hold("cuEventDestroy", self._call("cuEventCreate", flags))

    def record_event(self, event: Any) -> None:
        """Record the event behind all that is in the stream now."""
        self._call("cuEventRecord", event, self._stream)

    def wait_event(self, event: Any) -> None:
        """Wait until the stream has passed the event."""
        self._call("cuEventSynchronize", event)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Capture what `work` puts into the stream, and return a function that launches it.

        Nothing of it runs during the capture.
        """
        # Only this thread is watched for calls that a capture forbids; other threads may go on.
        mode = self._types.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._call("cuStreamBeginCapture", self._stream, mode)
        try:
            work()
        except BaseException:
            status, *ended = self._types.cuStreamEndCapture(self._stream)
            if int(status) == 0:  # a call was refused, and the capture lives all the same
                self._types.cuGraphDestroy(*ended)
            raise
        graph = self._call("cuStreamEndCapture", self._stream)
        try:
            executable = self._call("cuGraphInstantiate", graph, 0)
        finally:
            self._types.cuGraphDestroy(graph)
        self._hold("cuGraphExecDestroy", executable)
        return lambda: self._call("cuGraphLaunch", executable, self._stream)

    def _hold(self, free: str, handle: Any) -> Any:
        self._held.append((free, handle))
        return handle

    def _call(self, name: str, *arguments: Any, action: str = "") -> Any:
        return self._driver.call(name, *arguments, action=action)


def _release(driver: CudaDriver, context: Any, held: list[tuple[str, Any]]) -> None:
    """Free all handles, the last one first. Any thread may run this, so the context is pushed."""
    driver.types.cuCtxPushCurrent(context)
    for free, handle in reversed(held):
        getattr(driver.types, free)(handle)
    driver.types.cuCtxPopCurrent()
