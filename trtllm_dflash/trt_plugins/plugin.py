"""The one plugin class of all our operators, and its creator: everything that differs comes from
the declaration.

TensorRT calls these methods. Where it handles exceptions they raise (`_records_and_raises`). Where
an exception would crash it or be ignored they return a default (`_records_and_returns`). Either way
the error is stored, and `pop_errors` returns it to the caller of TensorRT.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from trtllm_dflash.errors import DFlashError, EngineError
from trtllm_dflash.graph.kernel_specs import KernelVariant
from trtllm_dflash.graph.ops import OPS, OpSpec
from trtllm_dflash.graph.plugin_nodes import (
    HOLDS_KERNELS,
    PLUGIN_NAMESPACE,
    PLUGIN_VERSION,
    kernel_variant,
)
from trtllm_dflash.hardware.cuda_module import CudaModule, load_module
from trtllm_dflash.trt.loader import import_tensorrt
from trtllm_dflash.trt_plugins.fields import bytes_field, field_types, number_field
from trtllm_dflash.trt_plugins.launch_config import OPERATIONS
from trtllm_dflash.trt_plugins.planned_call import Operator, planned_call
from trtllm_dflash.trt_plugins.shapes import (
    aliased_input,
    check_shapes,
    output_axes,
    present_inputs,
)

if TYPE_CHECKING:
    import tensorrt_rtx as trt
else:
    trt = import_tensorrt()

Method = TypeVar("Method", bound=Callable[..., Any])

# Fields of a plugin in an engine. All have their kernel's hash. One of them has all kernels: its
# own, and numbered ones that others use.
CUBIN = "cubin"
OTHER_CUBIN = "other_cubin_"
CUBIN_DIGEST = "cubin_sha256"
_cubins: dict[bytes, bytes] = {}  # of this process's engines, by hash
_refusals: list[str] = []

_TYPES = {
    "float32": trt.DataType.FLOAT,
    "bfloat16": trt.DataType.BF16,
    "float8e4m3fn": trt.DataType.FP8,
    "int32": trt.DataType.INT32,
    "int64": trt.DataType.INT64,
}


def pop_errors() -> list[str]:
    """Return and forget what plugins of this process have refused, each once, oldest first."""
    taken = list(dict.fromkeys(_refusals))
    _refusals.clear()
    return taken


def _keep(cubin: bytes) -> bytes:
    """Keep a kernel for all plugins of this process that use it; return its sha256."""
    digest = hashlib.sha256(cubin).digest()
    _cubins[digest] = cubin
    return digest


def _records_and_raises(method: Method) -> Method:
    """Decorate a method that may raise: record the error and raise it."""

    @wraps(method)
    def call(*arguments: Any) -> Any:
        try:
            return method(*arguments)
        except DFlashError as error:
            _refusals.append(str(error))
            raise

    return call  # type: ignore[return-value]


def _records_and_returns(default: Any) -> Callable[[Method], Method]:
    """Decorate a method that must not raise: record the error and return `default`."""

    def decorate(method: Method) -> Method:
        @wraps(method)
        def call(*arguments: Any) -> Any:
            try:
                return method(*arguments)
            except DFlashError as error:
                _refusals.append(str(error))
                return default

        return call  # type: ignore[return-value]

    return decorate


class StepPlugin(
    trt.IPluginV3,  # type: ignore[misc]
    trt.IPluginV3OneCore,  # type: ignore[misc]
    trt.IPluginV3OneBuildV2,  # type: ignore[misc]
    trt.IPluginV3OneRuntime,  # type: ignore[misc]
):
    """An operator of ours. `fields`: its attributes and its kernel's sizes and types by name;
    `digest`: the sha256 of that kernel; `cubin`: the kernel, where this plugin holds it; `others`:
    the kernels that it holds for other plugins.
    """

    def __init__(
        self,
        spec: OpSpec,
        fields: Mapping[str, int | float],
        digest: bytes,
        cubin: bytes | None = None,
        others: Sequence[bytes] = (),
    ) -> None:
        for base in StepPlugin.__bases__:
            base.__init__(self)
        self.plugin_name = spec.name
        self.plugin_version = PLUGIN_VERSION
        self.plugin_namespace = PLUGIN_NAMESPACE
        self.num_outputs = len(spec.outputs)
        self.spec = spec
        self.fields = dict(fields)
        self.digest = digest
        self.cubin = cubin
        self.others = tuple(others)
        self._operation = OPERATIONS[spec.kernel.source]
        self._operator = Operator(spec.name, self._operation, tuple(self.fields.items()))
        self._module: CudaModule | None = None

    def get_capability_interface(self, _: Any) -> StepPlugin:
        """Return this object, which has all capabilities."""
        return self

    def clone(self) -> StepPlugin:
        """Another plugin of the same kernel, which both share."""
        return StepPlugin(self.spec, self.fields, self.digest, self.cubin, self.others)

    # While an engine is built

    @_records_and_raises
    def get_output_data_types(self, types: Sequence[Any]) -> list[Any]:
        """Return the declared types, if the inputs have theirs."""
        for tensor, found in zip(present_inputs(self.spec, len(types)), types, strict=True):
            if found != self._type(tensor.dtype):
                raise EngineError(
                    f"{self.spec.name}: {tensor.name} is {found.name}, expected"
                    f" {self._type(tensor.dtype).name}"
                )
        return [self._type(tensor.dtype) for tensor in self.spec.outputs]

    @_records_and_raises
    def get_output_shapes(self, inputs: Sequence[Any], _: Any, expressions: Any) -> list[Any]:
        """Return the declared shapes, from those inputs that have the same symbols, if all inputs
        have theirs.
        """
        self._dims([_known_sizes(tensor) for tensor in inputs], ())
        shapes = []
        for axes in output_axes(self.spec):
            sizes = []
            for axis in axes:
                if isinstance(axis, int):
                    sizes.append(expressions.constant(axis))
                else:
                    tensor, place = axis
                    sizes.append(inputs[tensor][place])
            shapes.append(trt.DimsExprs(sizes))
        return shapes

    def supports_format_combination(
        self, position: int, described: Sequence[Any], num_inputs: int
    ) -> bool:
        """Return the declared types, in plain row-major order."""
        tensors = [*self.spec.plugin_inputs[:num_inputs], *self.spec.outputs]
        found = described[position].desc
        return bool(
            found.type == self._type(tensors[position].dtype)
            and found.format == trt.TensorFormat.LINEAR
        )

    def get_aliased_input(self, output: int) -> int:
        """Return the input that an output is written into; -1: none."""
        return aliased_input(self.spec, output)

    @_records_and_returns(None)
    def configure_plugin(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        """Check every bound of the profile's shapes."""
        for bound in ("min", "max"):
            self._dims(
                [getattr(tensor, bound) for tensor in inputs],
                [getattr(tensor, bound) for tensor in outputs],
            )

    @_records_and_returns(0)
    def get_workspace_size(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
        """Bytes for the largest shapes, and for all smaller ones."""
        dims = self._dims([tensor.max for tensor in inputs], [tensor.max for tensor in outputs])
        return self._operation.workspace_bytes(dims, self.fields)

    def get_valid_tactics(self) -> list[int]:
        """There is one way to run it."""
        return []

    def set_tactic(self, _: int) -> None:
        """There is one way to run it."""

    def get_fields_to_serialize(self) -> Any:
        """Return the fields from which the creator makes it again, with the kernels it holds."""
        self._serialized = [number_field(name, value) for name, value in self.fields.items()]
        self._serialized.append(bytes_field(CUBIN_DIGEST, self.digest))
        if self.cubin is not None:
            self._serialized.append(bytes_field(CUBIN, self.cubin))
        for number, other in enumerate(self.others, 1):
            self._serialized.append(bytes_field(f"{OTHER_CUBIN}{number}", other))
        return trt.PluginFieldCollection(self._serialized)

    # While an engine runs

    def attach_to_context(self, _: Any) -> StepPlugin:
        """Return a clone for an execution context with its kernels loaded.

        Nothing is left to load inside a stream capture.

        What stands in the way is told by `enqueue`: TensorRT crashes when this method raises, and
        it calls it for a build too, on a machine without a GPU.
        """
        attached = self.clone()
        with suppress(DFlashError):
            attached._load()
        return attached

    def on_shape_change(self, *_: Any) -> None:
        """Shapes are checked and used by `enqueue`."""

    @_records_and_raises
    def enqueue(
        self,
        inputs: Sequence[Any],
        outputs: Sequence[Any],
        read: Sequence[int],
        written: Sequence[int],
        workspace: int,
        stream: int,
    ) -> None:
        """Launch the kernels on `stream`; the sequences hold addresses, in the order of the
        declaration.

        Raises: EngineError: if the shapes, the memory of the caches or the driver are not as they
        must be. To TensorRT's Python classes that is how a status is returned.
        """
        # TensorRT's shapes take five times as long where they are iterated.
        shapes = tuple([tuple(tensor.dims[:]) for tensor in (*inputs, *outputs)])
        module = self._load()
        processors = module.processors, module.processor_shared_bytes
        planned = planned_call(self._operator, shapes, len(inputs), *processors)
        module.launch(planned.launches(read, written, workspace), stream)

    def _load(self) -> CudaModule:
        if self._module is None:
            self._module = load_module(self._kernel(), self._operation.kernels(self._key()))
        return self._module

    def _kernel(self) -> bytes:
        """Return the kernel. All plugins of an engine are made before one is attached."""
        cubin = _cubins.get(self.digest) if self.cubin is None else self.cubin
        if cubin is None:
            raise EngineError(
                f"{self.spec.name}: no plugin of the engine holds the kernel {self._key()};"
                " build it again"
            )
        return cubin

    def _dims(
        self, inputs: Sequence[Any], outputs: Sequence[Any]
    ) -> dict[str, tuple[int, ...]]:
        """Checked shapes by tensor name, inputs first."""
        tensors = [*present_inputs(self.spec, len(inputs)), *self.spec.outputs]
        found = {
            tensor.name: tuple(dims)
            for tensor, dims in zip(tensors, (*inputs, *outputs), strict=False)
        }
        check_shapes(self.spec, found, _sizes(self.fields))
        return found

    def _key(self) -> KernelVariant:
        return kernel_variant(self.spec, _sizes(self.fields))

    def _type(self, dtype: str) -> Any:
        return _TYPES[self.spec.kernel.element_type(dtype, self.fields)]


class StepPluginCreator(trt.IPluginCreatorV3One):  # type: ignore[misc]
    """Makes the plugins of one operator: from a graph's node with its engine's `cubins`, or from an
    engine's fields.
    """

    def __init__(self, spec: OpSpec) -> None:
        trt.IPluginCreatorV3One.__init__(self)
        self.name = spec.name
        self.plugin_version = PLUGIN_VERSION
        self.plugin_namespace = PLUGIN_NAMESPACE
        self.spec = spec
        self.cubins: Mapping[KernelVariant, bytes] = {}
        self._fields = [
            trt.PluginField(name, np.empty(0), field_type)
            for name, (_, field_type) in field_types(spec).items()
        ]
        self._fields.append(
            trt.PluginField(HOLDS_KERNELS, np.empty(0), trt.PluginFieldType.INT32)
        )
        self.field_names = trt.PluginFieldCollection(self._fields)

    @_records_and_raises
    def create_plugin(self, _: str, fields: Any, phase: Any) -> StepPlugin:
        """Return a plugin of these fields; EngineError if one, or a kernel of its sizes, is
        missing.
        """
        given = {field.name: field for field in fields}
        values: dict[str, int | float] = {}
        for name, (python_type, _) in field_types(self.spec).items():
            if name not in given:
                raise EngineError(
                    f"{self.name}: its field {name} is missing, got {', '.join(sorted(given))}"
                )
            values[name] = python_type(np.asarray(given[name].data).item())
        key = kernel_variant(self.spec, _sizes(values))
        if phase == trt.TensorRTPhase.RUNTIME:
            return StepPlugin(self.spec, values, *self._kernel_of_engine(given))
        if key not in self.cubins:
            raise EngineError(f"{self.name}: no kernel was compiled for {key}")
        cubin = self.cubins[key]
        holder = given.get(HOLDS_KERNELS)
        digest = _keep(cubin)
        if holder is not None and not np.asarray(holder.data).item():
            return StepPlugin(self.spec, values, digest)
        others = [kernel for other, kernel in self.cubins.items() if other != key]
        return StepPlugin(self.spec, values, digest, cubin, others)

    def _kernel_of_engine(self, given: Mapping[str, Any]) -> tuple[bytes, bytes | None]:
        """Return the hash of a plugin's kernel, and the kernel if this plugin holds it.

        Those that it holds for others are kept. In engines of before 2026-12 every plugin, or one
        of those with the same kernel, holds its own.
        """
        for name, field in given.items():
            if name.startswith(OTHER_CUBIN):
                _keep(np.asarray(field.data).tobytes())
        cubin = np.asarray(given[CUBIN].data).tobytes() if CUBIN in given else None
        if cubin is not None:
            digest = _keep(cubin)
        elif CUBIN_DIGEST in given:
            digest = np.asarray(given[CUBIN_DIGEST].data).tobytes()
        else:
            raise EngineError(
                f"{self.name}: the engine has no kernel in the field {CUBIN}; build it again"
            )
        return digest, cubin


def _known_sizes(shape: Any) -> list[int]:
    """Return the sizes of a shape of expressions; -1: known only later."""
    return [size.get_constant_value() if size.is_constant() else -1 for size in shape]


def _sizes(fields: Mapping[str, int | float]) -> dict[str, int]:
    """Return the integers among a plugin's fields, the sizes and types of its kernel included."""
    return {name: value for name, value in fields.items() if isinstance(value, int)}


_creators: dict[str, StepPluginCreator] = {}


def register(cubins: Mapping[KernelVariant, bytes] | None = None) -> None:
    """Make our plugins known to TensorRT, once a process; `cubins` are all kernels of the engine to
    be built. An engine that is loaded brings its own.
    """
    registry = trt.get_plugin_registry()
    for spec in OPS.values():
        if spec.name not in _creators:
            creator = StepPluginCreator(spec)
            if not registry.register_creator(creator, PLUGIN_NAMESPACE):
                raise EngineError(
                    f"TensorRT does not take the plugin {spec.name}: its name is taken"
                )
            _creators[spec.name] = creator
        if cubins is not None:
            _creators[spec.name].cubins = cubins
