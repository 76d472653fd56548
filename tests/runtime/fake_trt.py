"""A TensorRT-RTX runtime without a GPU: contexts run a CPU engine's graph on their addresses.

An "engine file" holds the path of a CPU engine's directory. Contexts check what TensorRT does:
shapes within the profiles of a build, addresses set and aligned, memory given.

They allow no capture before the first run at new shapes. Before it runs, a context fills its
outputs with garbage, so that an input that shares memory with an output comes out wrong.
"""

from __future__ import annotations

import json
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
import tensorrt_rtx as real

from tests.runtime.fake_cuda import GARBAGE, FakeDriver, array_at
from tests.runtime.stated_engine import StatedContext, StatedEngine, io_sizes, sized
from trtllm_dflash.builder.optimization_profiles import profiles
from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.engine_dir.io_tensors import FP8, IoTensor
from trtllm_dflash.options.resolved_build import ResolvedBuild

SCRATCH_BYTES = 1000


class Run(NamedTuple):
    """One call of execute_async_v3."""

    context: int
    profile: int
    shapes: dict[str, tuple[int, ...]]
    addresses: dict[str, int]
    captured: bool


class FakeTrt:
    """Stands for the module tensorrt_rtx; names that it lacks are the real one's."""

    def __init__(
        self, driver: FakeDriver, *, capturable: bool = True, invalid: int = 0
    ) -> None:
        """`capturable`: what contexts say of themselves. `invalid`: no engine can be loaded, for
        these reasons.
        """
        self.driver = driver
        self.capturable = capturable
        self.invalid = invalid
        self.runs: list[Run] = []
        self.contexts: list[FakeContext] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(real, name)

    def Runtime(self, log: Any) -> FakeRuntime:  # noqa: N802 - the module's name
        return FakeRuntime(self, log)


class FakeRuntime:
    engine_header_size = 64

    def __init__(self, module: FakeTrt, log: Any) -> None:
        self._module = module
        self._log = log

    def get_engine_validity(self, _: bytes) -> tuple[Any, int]:
        return real.EngineValidity.INVALID, self._module.invalid

    def deserialize_cuda_engine(self, data: Any) -> FakeEngine | None:
        if self._module.invalid:
            self._log.log(real.ILogger.ERROR, "no such engine here")
            return None
        return FakeEngine(self._module, self._log, Path(bytes(data[:]).decode()))


class FakeEngine(StatedEngine):
    """The engine of a CPU engine's directory.

    One "with plugins" has no tensor kv_positions and fills it in itself. One with FP8 caches has
    them packed; the CPU engine has them dequantized.
    """

    device_memory_size_v2 = SCRATCH_BYTES

    def __init__(self, module: FakeTrt, log: Any, directory: Path) -> None:
        self.module = module
        config = EngineConfig.load(directory)
        self.with_plugins = (directory / "with_plugins").exists()
        io_tensors = (
            with_fp8_caches(config.io) if (directory / "fp8_caches").exists() else config.io
        )
        io_tensors = tuple(
            p for p in io_tensors if not (self.with_plugins and p.name == "kv_positions")
        )
        self.hidden = {"kv_positions": np.arange(config.cache_len)} if self.with_plugins else {}
        known = {field.name for field in fields(ResolvedBuild)}
        sizes = json.loads((directory / "config.json").read_text())["build_config"]
        sizes.setdefault("gpu_arch", sizes.get("arch"))
        resolved = ResolvedBuild(**{k: v for k, v in sizes.items() if k in known})
        super().__init__(io_tensors, profiles(io_tensors, resolved), log)
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(
            str(directory / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )

    def create_execution_context(self, config: Any) -> FakeContext:
        context = FakeContext(self, config)
        self.module.contexts.append(context)
        return context


class FakeContext(StatedContext):
    def __init__(self, engine: FakeEngine, config: Any) -> None:
        super().__init__(engine, config)
        self.config = config
        self._engine: FakeEngine = engine
        self._module = engine.module
        self._driver = engine.module.driver
        self._number = len(engine.module.contexts)

    def set_device_memory(self, address: int, nbytes: int) -> None:
        super().set_device_memory(address, nbytes)
        assert self._driver.view(address, nbytes) is not None

    def is_stream_capturable(self, _: int) -> bool:
        return self._module.capturable

    def execute_async_v3(self, _: int) -> bool:
        captured = self._driver.captured is not None
        if captured and not self._module.capturable:
            return self._refuse("memory would have to be allocated now")
        if not self._is_ready(captured=captured):
            return False
        run = Run(
            self._number, self._profile, dict(self._shapes), dict(self._addresses), captured
        )
        self._module.runs.append(run)
        self._driver.put(partial(self._execute, run))
        return True

    def _execute(self, run: Run) -> None:
        sizes = io_sizes(self._engine.io, run.shapes)
        binding = self._engine.session.io_binding()
        arrays = dict(self._engine.hidden)
        array_at(self._driver, self._scratch, (SCRATCH_BYTES,), "uint8")[:] = GARBAGE
        for tensor in self._engine.io:
            array = arrays[tensor.name] = array_at(
                self._driver, run.addresses[tensor.name], sized(tensor, sizes), tensor.dtype
            )
            if tensor.direction == "output" and not tensor.aliases:
                array.view("uint8")[:] = GARBAGE
        packed = {
            tensor.name: arrays[tensor.name]
            for tensor in self._engine.io
            if tensor.dtype == FP8
        }
        # By address, since they alias.
        dequantized = {array.ctypes.data: array.astype(np.float32) for array in packed.values()}
        arrays |= {name: dequantized[array.ctypes.data] for name, array in packed.items()}
        outputs = {tensor.name for tensor in self._engine.io if tensor.direction == "output"}
        for name, array in arrays.items():
            value = ort.OrtValue.ortvalue_from_numpy(array)
            bind = (
                binding.bind_ortvalue_output if name in outputs else binding.bind_ortvalue_input
            )
            bind(name, value)
        self._engine.session.run_with_iobinding(binding)
        for name, array in packed.items():
            array[:] = arrays[name].astype(array.dtype)
            # The engine wrote only values that FP8 can hold.
            assert np.array_equal(array.astype(np.float32), arrays[name])


def with_fp8_caches(io_tensors: tuple[IoTensor, ...]) -> tuple[IoTensor, ...]:
    """Return the inputs and outputs of a GPU's engine whose target has FP8 caches."""
    return tuple(
        replace(tensor, dtype=FP8)
        if tensor.cache == "target" and not tensor.recurrent
        else tensor
        for tensor in io_tensors
    )
