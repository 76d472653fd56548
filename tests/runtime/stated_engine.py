"""What TensorRT's engines and contexts say and refuse, whatever runs the step in a test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorrt_rtx as real

from trtllm_dflash.builder.optimization_profiles import Profile
from trtllm_dflash.engine_dir.io_tensors import FP8, IoTensor

ALIGNMENT = 256  # of addresses that TensorRT takes
DTYPES = {
    "float32": real.DataType.FLOAT,
    "bfloat16": real.DataType.BF16,
    FP8: real.DataType.FP8,
    "int32": real.DataType.INT32,
    "int64": real.DataType.INT64,
}


class StatedEngine:
    """An `ICudaEngine` of these inputs and outputs."""

    def __init__(self, io: Sequence[IoTensor], profiles: Sequence[Profile], log: Any) -> None:
        self.io = tuple(io)
        self.profiles = profiles
        self.log = log

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.profiles)

    @property
    def num_io_tensors(self) -> int:
        return len(self.io)

    def get_tensor_name(self, index: int) -> str:
        return self.io[index].name

    def _tensor(self, name: str) -> IoTensor:
        return next(tensor for tensor in self.io if tensor.name == name)

    def get_tensor_mode(self, name: str) -> Any:
        is_input = self._tensor(name).direction == "input"
        return real.TensorIOMode.INPUT if is_input else real.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return DTYPES[self._tensor(name).dtype]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(-1 if isinstance(size, str) else size for size in self._tensor(name).shape)

    def get_aliased_input_tensor(self, name: str) -> str:
        return self._tensor(name).aliases or ""

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return list(self.profiles[profile][name])

    def create_runtime_config(self) -> StatedRuntimeConfig:
        return StatedRuntimeConfig()


class StatedKernels:
    """An `IRuntimeCache`: the shapes whose kernels are finished."""

    KIND = b"stated kernels\n"

    def __init__(self) -> None:
        self._shapes: set[str] = set()

    def finish(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._shapes.add(repr(sorted(shapes.items())))

    def serialize(self) -> bytes:
        return self.KIND + "\n".join(sorted(self._shapes)).encode()

    def deserialize(self, blob: bytes) -> bool:
        if not blob.startswith(self.KIND):
            return False
        self._shapes = {*blob.removeprefix(self.KIND).decode().splitlines()}
        return True


class StatedRuntimeConfig:
    """An `IRuntimeConfig`; contexts finish kernels in the cache that it was given."""

    def __init__(self) -> None:
        self._kernels = StatedKernels()

    def set_execution_context_allocation_strategy(self, _: Any) -> None: ...

    def create_runtime_cache(self) -> StatedKernels:
        return StatedKernels()

    def set_runtime_cache(self, kernels: StatedKernels) -> bool:
        self._kernels = kernels
        return True


class StatedContext:
    """An `IExecutionContext` that takes shapes and addresses as TensorRT does."""

    def __init__(self, engine: StatedEngine, config: Any) -> None:
        self._engine = engine
        self._kernels = getattr(config, "_kernels", StatedKernels())
        self._profile = -1
        self._scratch = 0
        self._settled = False
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    def set_device_memory(self, address: int, nbytes: int) -> None:
        assert nbytes >= self._engine.device_memory_size_v2
        self._scratch = address

    def set_optimization_profile_async(self, profile: int, _: int) -> bool:
        self._profile = profile
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = self._engine.profiles[self._profile][name]
        if len(shape) != len(least) or not all(
            a <= b <= c for a, b, c in zip(least, shape, most, strict=True)
        ):
            return self._refuse(f"shape {shape} of {name} is outside {least} to {most}")
        self._shapes[name] = shape
        self._settled = False
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        if address % ALIGNMENT:
            return self._refuse(f"{name} is not aligned")
        self._addresses[name] = address
        return True

    def _is_ready(self, *, captured: bool) -> bool:
        """Tell whether a run may begin, and refuse it if not.

        The first one at new shapes settles kernels and memory, which no capture allows.
        """
        io = self._engine.io
        inputs = {tensor.name for tensor in io if tensor.direction == "input"}
        if self._shapes.keys() != inputs or self._addresses.keys() != {t.name for t in io}:
            return self._refuse("a shape or an address is missing")
        if not self._scratch or (captured and not self._settled):
            return self._refuse("memory would have to be allocated now")
        self._settled = True
        self._kernels.finish(self._shapes)
        return True

    def _refuse(self, reason: str) -> bool:
        self._engine.log.log(real.ILogger.ERROR, reason)
        return False


def io_sizes(
    io_tensors: Sequence[IoTensor], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, int]:
    """Return the value of every symbol; all inputs must agree on it."""
    found: dict[str, set[int]] = {}
    for tensor in io_tensors:
        for symbol, size in zip(tensor.shape, shapes.get(tensor.name, ()), strict=False):
            if isinstance(symbol, str):
                found.setdefault(symbol, set()).add(size)
            else:
                assert symbol == size, tensor.name
    assert all(len(values) == 1 for values in found.values()), found
    return {symbol: values.pop() for symbol, values in found.items()}


def sized(tensor: IoTensor, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Return a tensor's shape where its symbols have these sizes."""
    return tuple(sizes[size] if isinstance(size, str) else size for size in tensor.shape)
