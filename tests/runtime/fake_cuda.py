"""A CUDA driver without a GPU: the functions of cuda.bindings.driver, over the host's memory.

It is as strict as CUDA may be. Fresh memory holds garbage. A copy must lie inside one allocation.
Nothing may be allocated or waited for during a capture.

Work in the stream is done as late as possible (`eager=False`: when a call waits for it) or as early
as possible (`eager=True`: at once). A session that touches host memory too early fails with the
one, a session that reads it too late with the other.
"""

from __future__ import annotations

import ctypes
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
from cuda.bindings import driver as real

from trtllm_dflash.engine_dir.io_tensors import FP8

OK = real.CUresult.CUDA_SUCCESS
INVALID = real.CUresult.CUDA_ERROR_INVALID_VALUE
FORBIDDEN = real.CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
GARBAGE = 0xFF  # as float32 NaN, as int -1
ALIGNMENT = 256

Work = Callable[[], None]


# What needs no context that is current in the calling thread.
NO_CONTEXT = ("cuInit", "cuDriver", "cuDevice", "cuCtx", "cuGetError")


class FakeDriver:
    """`calls[name]` counts the calls; `to_host` has the size of every copy to the host.

    `used` has the context of every call that needs one; without one such a call fails.
    """

    def __init__(
        self,
        *,
        eager: bool = False,
        capability: tuple[int, int] = (12, 0),
        memory: int = 1 << 30,
        version: int = 13000,
    ) -> None:
        self.eager = eager
        self.calls: Counter[str] = Counter()
        self.to_host: list[int] = []
        self.used: list[tuple[str, str]] = []
        self.version = version
        self.thread = threading.local()
        self.pushed: list[Any] = []
        self.fail: dict[str, Any] = {}  # function -> the status that it answers with
        self.free = memory
        self._total = memory
        self._capability = capability
        self._memory: dict[
            int, tuple[np.ndarray, bool]
        ] = {}  # address -> bytes, and whether they are the device's
        self._pending: list[Work] = []
        self._put = 0
        self._done = 0
        self.captured: list[Work] | None = None

    def __getattribute__(self, name: str) -> Any:
        """Count and fail calls; types and constants are the real ones."""
        if not name.startswith(("cu", "CU")):
            return object.__getattribute__(self, name)
        if not name.startswith("cu"):
            return getattr(real, name)
        self.calls[name] += 1
        if name in self.fail:
            return lambda *_: (self.fail[name], *[None] * 2)
        if not name.startswith(NO_CONTEXT):
            context = getattr(self.thread, "context", None)
            if context is None:
                return lambda *_: (real.CUresult.CUDA_ERROR_INVALID_CONTEXT, *[None] * 2)
            self.used.append((name, context))
        return object.__getattribute__(self, name)

    # What the device would do

    def put(self, work: Work) -> None:
        """Put work into the stream, or into the graph that is being captured."""
        if self.captured is not None:
            self.captured.append(work)
            return
        self._pending.append(work)
        self._put += 1
        if self.eager:
            self._run_until(self._put)

    def view(self, address: int, nbytes: int) -> np.ndarray | None:
        """Return `nbytes` of an allocation, or None if no allocation has them."""
        for start, (memory, _) in self._memory.items():
            if start <= address and address + nbytes <= start + len(memory):
                return memory[address - start :][:nbytes]
        return None

    def _is_device(self, address: int) -> bool:
        return any(
            device and start <= address < start + len(memory)
            for start, (memory, device) in self._memory.items()
        )

    def _run_until(self, position: int) -> None:
        while self._done < position:
            self._pending.pop(0)()
            self._done += 1

    def _allocate(self, nbytes: int, *, device: bool) -> Any:
        if self.captured is not None:
            return FORBIDDEN, None
        if nbytes > self.free:
            return real.CUresult.CUDA_ERROR_OUT_OF_MEMORY, None
        self.free -= nbytes
        memory = np.full(nbytes + ALIGNMENT, GARBAGE, np.uint8)
        memory = memory[-memory.ctypes.data % ALIGNMENT :][:nbytes]
        self._memory[memory.ctypes.data] = (memory, device)
        return OK, memory.ctypes.data

    def _release(self, address: int) -> Any:
        memory, _ = self._memory.pop(address)
        self.free += len(memory)
        return (OK,)

    # The driver's functions

    def cuInit(self, _: int) -> Any:  # noqa: N802 - the driver's names, here and below
        return (OK,)

    def cuDeviceGet(self, ordinal: int) -> Any:  # noqa: N802
        return OK, ordinal

    def cuDeviceGetCount(self) -> Any:  # noqa: N802
        return OK, 1

    def cuDeviceGetName(self, length: int, _: int) -> Any:  # noqa: N802
        return OK, b"A GPU".ljust(length, b"\0")

    def cuDeviceTotalMem(self, _: int) -> Any:  # noqa: N802
        return OK, self._total

    def cuDriverGetVersion(self) -> Any:  # noqa: N802
        return OK, self.version

    def cuDevicePrimaryCtxRetain(self, ordinal: int) -> Any:  # noqa: N802
        return OK, f"context {ordinal}"

    def cuCtxSetCurrent(self, context: str) -> Any:  # noqa: N802
        self.thread.context = context
        return (OK,)

    def cuCtxGetCurrent(self) -> Any:  # noqa: N802
        return OK, getattr(self.thread, "context", None)

    def cuCtxPushCurrent(self, context: str) -> Any:  # noqa: N802
        self.pushed.append(getattr(self.thread, "context", None))
        self.thread.context = context
        return (OK,)

    def cuCtxPopCurrent(self) -> Any:  # noqa: N802
        popped, self.thread.context = self.thread.context, self.pushed.pop()
        return OK, popped

    def cuDeviceGetAttribute(self, attribute: Any, _: int) -> Any:  # noqa: N802
        return OK, self._capability[attribute.name.endswith("MINOR")]

    def cuStreamCreate(self, _: int) -> Any:  # noqa: N802
        return OK, 77

    def cuMemAlloc(self, nbytes: int) -> Any:  # noqa: N802
        return self._allocate(nbytes, device=True)

    def cuMemAllocHost(self, nbytes: int) -> Any:  # noqa: N802
        return self._allocate(nbytes, device=False)

    def cuMemFree(self, address: int) -> Any:  # noqa: N802
        return self._release(address)

    def cuMemFreeHost(self, address: int) -> Any:  # noqa: N802
        return self._release(address)

    def cuMemGetInfo(self) -> Any:  # noqa: N802
        return OK, self.free, self._total

    def cuMemsetD8Async(self, address: int, value: int, nbytes: int, _: Any) -> Any:  # noqa: N802
        memory = self.view(address, nbytes)
        if memory is None:
            return (INVALID,)
        self.put(partial(memory.fill, value))
        return (OK,)

    def cuMemcpyAsync(self, target: int, source: int, nbytes: int, _: Any) -> Any:  # noqa: N802
        there = self.view(target, nbytes)
        here = self.view(source, nbytes)
        if there is None or here is None:
            return (INVALID,)
        if self._is_device(source) and not self._is_device(target):
            self.to_host.append(nbytes)
        self.put(partial(np.copyto, there, here))
        return (OK,)

    def cuMemcpy2DAsync(self, area: Any, _: Any) -> Any:  # noqa: N802
        pairs = []
        for row in range(area.Height):
            target = int(area.dstDevice) + row * area.dstPitch
            source = int(area.srcDevice) + row * area.srcPitch
            pairs.append(
                (self.view(target, area.WidthInBytes), self.view(source, area.WidthInBytes))
            )
        if area.WidthInBytes > min(area.dstPitch, area.srcPitch) or any(
            a is None or b is None for a, b in pairs
        ):
            return (INVALID,)
        for there, here in pairs:
            self.put(partial(np.copyto, there, here))
        return (OK,)

    def cuStreamSynchronize(self, _: Any) -> Any:  # noqa: N802
        if self.captured is not None:
            return (FORBIDDEN,)
        self._run_until(self._put)
        return (OK,)

    def cuEventCreate(self, _: int) -> Any:  # noqa: N802
        return OK, {"position": 0}

    def cuEventRecord(self, event: dict[str, int], _: Any) -> Any:  # noqa: N802
        event["position"] = self._put
        return (OK,)

    def cuEventSynchronize(self, event: dict[str, int]) -> Any:  # noqa: N802
        if self.captured is not None:
            return (FORBIDDEN,)
        self._run_until(event["position"])
        return (OK,)

    def cuStreamBeginCapture(self, *_: Any) -> Any:  # noqa: N802
        self.captured = []
        return (OK,)

    def cuStreamEndCapture(self, _: Any) -> Any:  # noqa: N802
        graph, self.captured = self.captured, None
        return OK, graph

    def cuGraphInstantiate(self, graph: list[Work], _: int) -> Any:  # noqa: N802
        return OK, list(graph)

    def cuGraphLaunch(self, executable: list[Work], _: Any) -> Any:  # noqa: N802
        for work in executable:
            self.put(work)
        return (OK,)

    def cuGetErrorString(self, status: Any) -> Any:  # noqa: N802
        return OK, status.name.lower().encode()

    def _forget(self, *_: Any) -> Any:
        return (OK,)

    cuStreamDestroy = cuEventDestroy = cuGraphDestroy = cuGraphExecDestroy = _forget  # noqa: N815


def array_at(
    driver: FakeDriver, address: int, shape: tuple[int, ...], dtype: str
) -> np.ndarray:
    """Return the array that a kernel would see at a device address; fail without such memory."""
    element = np.dtype(ml_dtypes.float8_e4m3fn if dtype == FP8 else dtype)
    nbytes = int(np.prod(shape)) * element.itemsize
    assert driver.view(address, nbytes) is not None, (
        f"{nbytes} bytes at {address:#x} are not allocated"
    )
    pointer = (ctypes.c_uint8 * nbytes).from_address(address)
    return np.frombuffer(pointer, element).reshape(shape)
