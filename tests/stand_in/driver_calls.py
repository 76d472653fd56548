"""Calls of the stand-in driver through cuda-bindings; each returns what came and what must come."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from cuda.bindings import driver as cu

from tests.plugins.cubins import HEAD_DIMS, KernelVariant, compiled
from tests.stand_in.driver import Setup
from tests.stand_in.process import driver

Result = tuple[Any, Any]
KERNEL = b"dflash_attention_merge_d64"
PITCHED_ROWS = 3
_ATTENTION = KernelVariant("attention", (("head_dim", HEAD_DIMS[0]),))
_SHARED = cu.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_CAPTURE = cu.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL


def _ok(result: tuple[Any, ...]) -> Any:
    assert int(result[0]) == 0, result
    return result[1] if len(result) == 2 else None


def _name(result: tuple[Any, ...]) -> str:
    return str(result[0].name).removeprefix("CUDA_ERROR_")


def _begin(setup: Setup = Setup(), device: int = 0) -> Any:  # noqa: B008 - it is never changed
    """Return a stream of a GPU, whose context is current now."""
    driver().reset(setup)
    return _stream_of(device)


def _stream_of(device: int) -> Any:
    _ok(cu.cuCtxSetCurrent(_ok(cu.cuDevicePrimaryCtxRetain(device))))
    return _ok(cu.cuStreamCreate(1))


def _kernel(arch: str = "sm120") -> Any:
    module = _ok(cu.cuModuleLoadData(compiled(_ATTENTION, arch).code))
    return _ok(cu.cuModuleGetFunction(module, KERNEL))


def _launch(stream: Any, *, threads: int = 128, shared_bytes: int = 0) -> str:
    params = (ctypes.c_uint8 * 512)()
    arguments = (ctypes.c_void_p * 1)(ctypes.addressof(params))
    shape = (1, 1, 1, threads, 1, 1, shared_bytes)
    address = ctypes.addressof(arguments)
    return _name(cu.cuLaunchKernel(_kernel(), *shape, stream, address, 0))


def _bytes(address: int, count: int) -> list[int]:
    return list((ctypes.c_uint8 * count).from_address(address))


def fresh_memory() -> Result:
    _begin()
    address = int(_ok(cu.cuMemAlloc(3)))
    return (_bytes(address, 3), address % 256, address % 512), ([255] * 3, 0, 256)


def without_context() -> Result:
    driver().reset(Setup())
    cu.cuCtxSetCurrent(0)
    return _name(cu.cuMemAlloc(8)), "INVALID_CONTEXT"


def copy_beyond() -> Result:
    stream = _begin()
    small, large = _ok(cu.cuMemAlloc(8)), _ok(cu.cuMemAlloc(16))
    return _name(cu.cuMemcpyAsync(small, large, 9, stream)), "INVALID_VALUE"


def copy_to_pageable() -> Result:
    stream = _begin()
    host = np.zeros(8, np.uint8)
    copied = cu.cuMemcpyAsync(host.ctypes.data, _ok(cu.cuMemAlloc(8)), 8, stream)
    return _name(copied), "INVALID_VALUE"


def copy_between_gpus() -> Result:
    _begin(Setup(archs=(120, 120)))
    there = _ok(cu.cuMemAlloc(8))
    stream = _stream_of(1)
    copied = cu.cuMemcpyAsync(_ok(cu.cuMemAlloc(8)), there, 8, stream)
    return _name(copied), "INVALID_VALUE"


def rows_beyond_pitch() -> Result:
    stream = _begin()
    area = cu.CUDA_MEMCPY2D()
    area.srcMemoryType = area.dstMemoryType = cu.CUmemorytype.CU_MEMORYTYPE_DEVICE
    area.srcDevice, area.dstDevice = _ok(cu.cuMemAlloc(64)), _ok(cu.cuMemAlloc(64))
    area.srcPitch, area.dstPitch, area.Height = 8, 4, PITCHED_ROWS
    names = []
    for width in (4, 5):
        area.WidthInBytes = width
        names.append(_name(cu.cuMemcpy2DAsync(area, stream)))
    return names, ["CUDA_SUCCESS", "INVALID_VALUE"]


def _captured(call: Callable[[Any], Any]) -> Result:
    stream = _begin()
    _ok(cu.cuStreamBeginCapture(stream, _CAPTURE))
    answers = [_name(call(stream)), _name(cu.cuStreamEndCapture(stream))]
    return answers, ["STREAM_CAPTURE_UNSUPPORTED", "STREAM_CAPTURE_INVALIDATED"]


def allocate_in_capture() -> Result:
    return _captured(lambda _: cu.cuMemAlloc(8))


def wait_in_capture() -> Result:
    return _captured(cu.cuStreamSynchronize)


def stream_of_another_gpu() -> Result:
    stream = _begin(Setup(archs=(120, 120)))
    _stream_of(1)
    return _name(cu.cuStreamSynchronize(stream)), "INVALID_HANDLE"


def unknown_kernel() -> Result:
    _begin()
    module = _ok(cu.cuModuleLoadData(compiled(_ATTENTION, "sm120").code))
    return _name(cu.cuModuleGetFunction(module, b"dflash_attention")), "NOT_FOUND"


def _loaded(cubin: str, gpu: int) -> str:
    _begin(Setup(archs=(gpu,)))
    return _name(cu.cuModuleLoadData(compiled(_ATTENTION, cubin).code))


def cubin_of_another_gpu() -> Result:
    return _loaded("sm120", 90), "NO_BINARY_FOR_GPU"


def cubin_of_newer_gpu() -> Result:
    names = _loaded("sm89", 86), _loaded("sm86", 89)
    return names, ("NO_BINARY_FOR_GPU", "CUDA_SUCCESS")


def no_cubin() -> Result:
    _begin()
    return _name(cu.cuModuleLoadData(b"\x7fELF" + bytes(256))), "INVALID_IMAGE"


def shared_memory_unasked() -> Result:
    stream = _begin()
    names = [_launch(stream, shared_bytes=size) for size in ((48 << 10) + 1, 100)]
    return names, ["INVALID_VALUE", "CUDA_SUCCESS"]


def shared_memory_beyond() -> Result:
    _begin()
    kernel = _kernel()
    names = [_name(cu.cuFuncSetAttribute(kernel, _SHARED, kb << 10)) for kb in (99, 100)]
    return names, ["CUDA_SUCCESS", "INVALID_VALUE"]


def too_many_threads() -> Result:
    return _launch(_begin(), threads=160), "INVALID_VALUE"


def write_beside() -> Result:
    stream = _begin()
    address = int(_ok(cu.cuMemAlloc(10)))
    ctypes.memset(address + 10, 1, 1)
    cu.cuMemFree(address)
    cu.cuStreamDestroy(stream)
    return driver().faults(), ["1 allocations were written outside their bounds"]


def write_after_free() -> Result:
    stream = _begin()
    address = int(_ok(cu.cuMemAlloc(10)))
    cu.cuMemFree(address)
    ctypes.memset(address + 3, 1, 1)
    cu.cuStreamDestroy(stream)
    return driver().faults(), ["1 allocations were written outside their bounds"]


def leak() -> Result:
    _begin()
    _ok(cu.cuMemAllocHost(10))
    return driver().faults(), ["2 objects were not freed"]  # with the stream


def unsupported() -> Result:
    cu.cuStreamDestroy(_begin())
    name = _name(cu.cuMemAllocManaged(8, 1))
    return (name, driver().faults()), ("NOT_SUPPORTED", ["cuMemAllocManaged was called"])


def private_table() -> Result:
    _begin()
    return _name(cu.cuGetExportTable(cu.CUuuid())), "NOT_FOUND"


def _set_later(setup: Setup) -> list[int]:
    stream = _begin(setup)
    address = int(_ok(cu.cuMemAlloc(1)))
    _ok(cu.cuMemsetD8Async(address, 7, 1, stream))
    before = _bytes(address, 1)
    _ok(cu.cuStreamSynchronize(stream))
    return [*before, *_bytes(address, 1)]


def late_work() -> Result:
    return _set_later(Setup(late=True)), [255, 7]


def early_work() -> Result:
    return _set_later(Setup()), [7, 7]


def host_functions() -> Result:
    """Launch a captured graph of two host functions twice, late."""
    stream = _begin(Setup(late=True))
    called: list[int] = []
    functions = [_host_function(called, number) for number in (1, 2)]
    _ok(cu.cuStreamBeginCapture(stream, _CAPTURE))
    for function in functions:
        address = ctypes.cast(function, ctypes.c_void_p).value
        _ok(cu.cuLaunchHostFunc(stream, cu.CUhostFn(address), 0))
    graph = _ok(cu.cuGraphInstantiate(_ok(cu.cuStreamEndCapture(stream)), 0))
    for _ in range(2):
        _ok(cu.cuGraphLaunch(graph, stream))
    before = list(called)
    _ok(cu.cuStreamSynchronize(stream))
    return (before, called), ([], [1, 2, 1, 2])


def _host_function(called: list[int], number: int) -> Any:
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: called.append(number))


def public_names(header: Path) -> list[str]:
    """Return the names of all functions that cuda.h declares."""
    text = header.read_text(encoding="utf-8")
    return sorted({*re.findall(r"^CUresult CUDAAPI (cu[A-Z]\w+)\(", text, re.MULTILINE)})


def missing(names: list[str]) -> list[str]:
    """Return the names that the driver does not find by name."""
    found = {name: cu.cuGetProcAddress(name.encode(), 13050, 0)[1] for name in names}
    return [name for name, address in found.items() if not address]
