"""A small TensorRT over the stand-in driver: the step graph with its real plugins.

Between plugins the graph runs in ONNX Runtime, as host functions of the stream. Each plugin is made
from the fields in the engine, attached to each context, and enqueued with real addresses. As on a
GPU, a replayed CUDA graph calls no plugin. All intermediate results and workspaces lie in the
scratch memory that the session gives.
"""

from __future__ import annotations

import ctypes
import pickle
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import onnx
import tensorrt_rtx as real

from tests.runtime.stated_engine import StatedContext, StatedEngine, io_sizes, sized
from tests.stand_in.cut_graph import CutGraph, Level, cut
from tests.stand_in.small_builder import SmallPlan
from trtllm_dflash.engine_dir.io_tensors import FP8
from trtllm_dflash.errors import DFlashError
from trtllm_dflash.hardware.cuda_driver import load_driver
from trtllm_dflash.trt_plugins import plugin
from trtllm_dflash.trt_plugins.shapes import output_axes

SCRATCH_BYTES = 8 << 20
CUDA_OF_TENSORRT = 13000
# What TensorRT-RTX 1.7 writes where the driver is older than that.
OLD_DRIVER = (
    "[checkMacros.cpp::catchCudaError::250] Error Code 1: Cuda Runtime (In catchCudaError at"
    " /_src/common/dispatch/checkMacros.cpp:250 (cudaError 35: CUDA driver version is insufficient"
    " for CUDA runtime version))"
)
GARBAGE = 0xFF
_ALIGNMENT = 256
_GUARD = 4096  # bytes behind a workspace
_BYTES = np.dtype(np.uint8)
_HOST_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_DTYPES = {"bfloat16": ml_dtypes.bfloat16, FP8: ml_dtypes.float8_e4m3fn}


class Placed(NamedTuple):
    """An array in device memory."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def view(self) -> np.ndarray:
        """Return the array as a kernel sees it; only for work in the stream."""
        memory = (ctypes.c_uint8 * self.nbytes).from_address(self.address)
        return np.frombuffer(memory, self.dtype).reshape(self.shape)


class SmallTrt:
    """Stands for the module tensorrt_rtx; names that it lacks are the real one's."""

    def __init__(self) -> None:
        self.failures: list[BaseException] = []  # of work in the stream

    def __getattr__(self, name: str) -> Any:
        return getattr(real, name)

    def Runtime(self, log: Any) -> SimpleNamespace:  # noqa: N802 - the module's name
        def load(data: Any) -> SmallEngine | None:
            version = load_driver().call("cuDriverGetVersion")
            if version < CUDA_OF_TENSORRT:
                log.log(real.ILogger.ERROR, OLD_DRIVER)
                return None
            try:
                return SmallEngine(self, pickle.loads(bytes(data[:])), log)
            except DFlashError as error:
                log.log(real.ILogger.ERROR, str(error))
                return None

        return SimpleNamespace(
            deserialize_cuda_engine=load,
            engine_header_size=64,
            get_engine_validity=lambda _: (real.EngineValidity.VALID, 0),
        )


class SmallEngine(StatedEngine):
    """An engine file on the device: its constants, and its plugins made from their fields."""

    device_memory_size_v2 = SCRATCH_BYTES

    def __init__(self, module: SmallTrt, plan: SmallPlan, log: Any) -> None:
        super().__init__(plan.io, plan.profiles, log)
        self.module = module
        self.graph: CutGraph = cut(onnx.ModelProto.FromString(plan.graph))
        driver = load_driver()
        self.driver = driver
        self.constants: dict[tuple[str, np.dtype], Placed] = {}
        self._nodes = [node for level in self.graph.levels for node in level.plugins]
        self.plugins = {
            node.name: _plugin(node.op_type, plan.plugins[node.name]) for node in self._nodes
        }
        held: list[int] = []
        weakref.finalize(self, _free, driver, held).atexit = False
        for node in self._nodes:
            self._place_constants(node, held)

    def _place_constants(self, node: onnx.NodeProto, held: list[int]) -> None:
        made = self.plugins[node.name]
        for name, tensor in zip(node.input, made.spec.plugin_inputs, strict=False):
            dtype = _dtype(made, tensor.dtype)
            if name not in self.graph.constants or (name, dtype) in self.constants:
                continue
            array = np.ascontiguousarray(self.graph.constants[name].astype(dtype))
            address = int(self.driver.call("cuMemAlloc", max(array.nbytes, 1)))
            held.append(address)
            ctypes.memmove(address, array.ctypes.data, array.nbytes)
            self.constants[name, dtype] = Placed(address, array.shape, dtype)

    def create_execution_context(self, config: Any) -> SmallContext:
        return SmallContext(self, config)


def _plugin(name: str, fields: list[tuple[str, np.ndarray, int]]) -> plugin.StepPlugin:
    given = [
        real.PluginField(field, data, real.PluginFieldType(kind))
        for field, data, kind in fields
    ]
    creator = plugin._creators[name]
    collection = real.PluginFieldCollection(given)
    return creator.create_plugin(name, collection, real.TensorRTPhase.RUNTIME)


def _free(driver: Any, addresses: list[int]) -> None:
    for address in addresses:
        driver.types.cuMemFree(address)


def _dtype(made: plugin.StepPlugin, declared: str) -> np.dtype:
    name = made.spec.kernel.element_type(declared, made.fields)
    return np.dtype(_DTYPES.get(name, name))


class SmallContext(StatedContext):
    """An execution context; a run puts host functions and plugins' kernels into the stream."""

    def __init__(self, engine: SmallEngine, config: Any) -> None:
        super().__init__(engine, config)
        self._engine: SmallEngine = engine
        self._plugins = {
            name: made.attach_to_context(None) for name, made in engine.plugins.items()
        }
        self._callbacks: list[Any] = []  # a captured graph calls them as long as it lives

    def is_stream_capturable(self, _: int) -> bool:
        return True

    def execute_async_v3(self, stream: int) -> bool:
        engine = self._engine
        captured = engine.driver.call("cuStreamIsCapturing", stream)
        if not self._is_ready(captured=captured.name.endswith("ACTIVE")):
            return False
        run = _Run(self, stream)
        try:
            run.enqueue()
        except DFlashError as error:
            return self._refuse(str(error))
        return True

    def put(self, stream: int, work: Callable[[], None]) -> None:
        """Put a host function into the stream."""

        def call(_: Any) -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - nothing may leave a callback
                self._engine.module.failures.append(error)

        callback = _HOST_FUNCTION(call)
        self._callbacks.append(callback)
        address = ctypes.cast(callback, ctypes.c_void_p).value
        types = self._engine.driver.types
        self._engine.driver.call("cuLaunchHostFunc", stream, types.CUhostFn(address), 0)


class _Run:
    """One run: where every value lies, and what is put into the stream."""

    def __init__(self, context: SmallContext, stream: int) -> None:
        self._context = context
        self._engine = context._engine
        self._stream = stream
        self._end = context._scratch
        sizes = io_sizes(self._engine.io, context._shapes)
        self._ports = {
            tensor.name: Placed(
                context._addresses[tensor.name],
                sized(tensor, sizes),
                np.dtype(_DTYPES.get(tensor.dtype, tensor.dtype)),
            )
            for tensor in self._engine.io
        }
        inputs = {name: self._ports[name] for name in self._engine.graph.inputs}
        self._values: dict[str, Placed] = inputs
        # Arrays of the right shapes, with which shapes behind them are found.
        self._samples = {
            name: np.ones(placed.shape, _host_dtype(placed.dtype))
            for name, placed in inputs.items()
        }

    def enqueue(self) -> None:
        scratch = Placed(self._context._scratch, (SCRATCH_BYTES,), _BYTES)
        self._put(lambda: scratch.view().fill(GARBAGE))
        for level in self._engine.graph.levels:
            self._segment(level)
            for node in level.plugins:
                self._plugin(node)

    def _put(self, work: Callable[[], None]) -> None:
        self._context.put(self._stream, work)

    def _place(self, shape: tuple[int, ...], dtype: np.dtype) -> Placed:
        placed = Placed(self._end, shape, dtype)
        self._end += -(-max(placed.nbytes, 1) // _ALIGNMENT) * _ALIGNMENT
        assert self._end <= self._context._scratch + SCRATCH_BYTES, "more scratch is needed"
        return placed

    def _segment(self, level: Level) -> None:
        segment = level.segment
        if segment is None:
            return
        feeds = {name: self._samples[name] for name in segment.inputs}
        for name, array in zip(
            segment.outputs, segment.session.run(segment.outputs, feeds), strict=True
        ):
            self._samples[name] = array
            is_port = name in self._ports
            self._values[name] = (
                self._ports[name] if is_port else self._place(array.shape, array.dtype)
            )
        read = {name: self._values[name] for name in segment.inputs}
        written = {name: self._values[name] for name in segment.outputs}
        self._put(partial(_run_segment, segment.session, read, written))

    def _plugin(self, node: onnx.NodeProto) -> None:
        made = self._context._plugins[node.name]
        read = [
            self._read(name, _dtype(made, tensor.dtype))
            for name, tensor in zip(node.input, made.spec.plugin_inputs, strict=False)
        ]
        written = []
        for name, tensor, axes in zip(
            node.output, made.spec.outputs, output_axes(made.spec), strict=True
        ):
            shape = tuple(_size(axis, read) for axis in axes)
            written.append(self._written(name, made, tensor, shape, read))
        inputs, outputs = _described(read), _described(written)
        nbytes = made.get_workspace_size(inputs, outputs)
        workspace = self._place((nbytes + _GUARD,), _BYTES)
        behind = Placed(workspace.address + nbytes, (_GUARD,), _BYTES)
        addresses = [[placed.address for placed in some] for some in (read, written)]
        made.enqueue(inputs, outputs, *addresses, workspace.address, self._stream)
        self._put(partial(_check_guard, behind, node.name))

    def _read(self, name: str, dtype: np.dtype) -> Placed:
        """Return an input of a plugin in its type, converted in the stream if need be."""
        if name in self._engine.graph.constants:
            return self._engine.constants[name, dtype]
        value = self._values[name]
        if value.dtype == dtype:
            return value
        converted = self._place(value.shape, dtype)

        def convert() -> None:
            converted.view()[...] = value.view().astype(dtype)

        self._put(convert)
        return converted

    def _written(
        self,
        name: str,
        made: plugin.StepPlugin,
        tensor: Any,
        shape: tuple[int, ...],
        read: list[Placed],
    ) -> Placed:
        dtype = _dtype(made, tensor.dtype)
        if tensor.aliases:
            index = [one.name for one in made.spec.plugin_inputs].index(tensor.aliases)
            placed = self._ports.get(name, read[index])
        elif name in self._ports and self._ports[name].dtype == dtype:
            placed = self._ports[name]
        else:
            placed = self._place(shape, dtype)
        self._values[name] = placed
        self._samples[name] = np.ones(shape, _host_dtype(dtype))
        return placed


def _check_guard(guard: Placed, name: str) -> None:
    """Check that nothing was written behind a workspace; all of it began as garbage."""
    assert (guard.view() == GARBAGE).all(), f"{name} wrote behind its workspace"


def _described(tensors: Sequence[Placed]) -> list[SimpleNamespace]:
    """Return tensors as TensorRT describes them to a plugin."""
    return [SimpleNamespace(dims=t.shape, min=t.shape, max=t.shape) for t in tensors]


def _size(axis: int | tuple[int, int], read: Sequence[Placed]) -> int:
    """Return a size of an output: it is fixed, or that of an input's axis."""
    return axis if isinstance(axis, int) else read[axis[0]].shape[axis[1]]


def _host_dtype(dtype: np.dtype) -> np.dtype:
    """Return the type in which ONNX Runtime gets an array."""
    return np.dtype(np.float32) if dtype in map(np.dtype, _DTYPES.values()) else dtype


def _run_segment(
    session: Any, read: Mapping[str, Placed], written: Mapping[str, Placed]
) -> None:
    feeds = {
        name: placed.view().astype(_host_dtype(placed.dtype)) for name, placed in read.items()
    }
    for name, array in zip(written, session.run(list(written), feeds), strict=True):
        written[name].view()[...] = array
