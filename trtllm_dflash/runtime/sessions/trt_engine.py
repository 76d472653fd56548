"""TensorRT's part of a GPU session: the engine on the device, and the contexts that run it."""

from __future__ import annotations

import logging
import mmap
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtllm_dflash import trt_plugins
from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.engine_dir.io_tensors import BATCH, BLOCK, CONTEXT, ROWS, WIDTH
from trtllm_dflash.errors import EngineError
from trtllm_dflash.hardware.backends import BACKENDS
from trtllm_dflash.hardware.cuda import Cuda
from trtllm_dflash.hardware.cuda_driver import LESS_MEMORY
from trtllm_dflash.hardware.devices import driver_cuda_version, format_driver
from trtllm_dflash.hardware.doctor import driver_reason
from trtllm_dflash.hardware.versions import pip_line, version_of_module
from trtllm_dflash.runtime.env import KERNEL_CACHE, env_flag
from trtllm_dflash.runtime.sessions.io_checks import PresentTensor, check_present
from trtllm_dflash.runtime.sessions.kernel_cache import KernelCache
from trtllm_dflash.trt.loader import flavor, import_tensorrt

if TYPE_CHECKING:
    import tensorrt_rtx as trt

    from trtllm_dflash.trt.flavors import Flavor
else:
    trt = import_tensorrt()

# In the order of the build. An engine of one profile uses it for both.
PREFILL_PROFILE = 0
_DECODE_PROFILE = 1
_LOG = logging.getLogger(__name__)
_MAX_KEPT_ERRORS = 8
# What CUDA's runtime inside TensorRT says of the driver, by the number in TensorRT's log.
_DRIVER_ERRORS = {
    34: "a stub of libcuda is in LD_LIBRARY_PATH before the driver's own",
    35: "it is older than the CUDA that this TensorRT was made for, so install a newer one",
    36: "it is older than the CUDA that this TensorRT was made for, so install a newer one",
    100: "it shows no GPU, so look at nvidia-smi and CUDA_VISIBLE_DEVICES",
    500: "it lacks a symbol, so libcuda is of an older driver",
    803: "libcuda and the loaded kernel module are of different drivers, so restart the machine",
    804: "this GPU takes no compat library, so take it out of LD_LIBRARY_PATH",
    999: "mostly the kernel module nvidia-uvm is not loaded",
}


class TrtEngine:
    """A deserialized engine.

    Its contexts share one piece of scratch memory, so they may only run one after another.
    """

    def __init__(
        self,
        path: Path,
        config: EngineConfig,
        cuda: Cuda,
        *,
        versions: Mapping[str, str],
        digest: str = "",
    ) -> None:
        """Load the engine file `path` onto the GPU.

        `versions` are those of the build's packages, `digest` is the file's sha256. Kernels that
        were finished before are used again; without a digest none are kept.

        Our plugins are registered before, since TensorRT looks their creators up by name. No parser
        takes part, so the library of TensorRT-RTX need not be found by name, as builds need it.
        """
        self._path = path
        self._config = config
        self._cuda = cuda
        self._log = _Log()
        self._flavor = flavor()
        # Before the registry is touched: TensorRT keeps its first log.
        self._runtime = trt.Runtime(self._log)
        if config.plugins:
            trt_plugins.register()
        trt_plugins.pop_errors()  # of other engines
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            self._engine = self._runtime.deserialize_cuda_engine(data)
            if self._engine is None:
                raise EngineError(self._load_error(data, versions))
        self._check_io()
        self._scratch_bytes = max(self._engine.device_memory_size_v2, 1)
        self._scratch = cuda.allocate(self._scratch_bytes, "the engine's intermediate results")
        self._kernels = self._kernel_cache(digest) if digest else None
        kept = self._kernels.read() if self._kernels else None
        self._contexts = self._flavor.contexts(self._engine, kept)
        if kept and not self._contexts.takes_kept:
            _LOG.warning(
                "%s: its finished kernels are of another GPU or driver and not used; they are"
                " finished again",
                path,
            )

    @property
    def decode_profile(self) -> int:
        """Return the profile of decode steps: the second one, or the only one."""
        return int(min(_DECODE_PROFILE, self._engine.num_optimization_profiles - 1))

    def context(self, profile: int, *, fixed_shapes: bool) -> TrtContext:
        """Return a new execution context; with `fixed_shapes` it runs at one set of shapes."""
        context = self._contexts.make(fixed_shapes=fixed_shapes)
        if context is None:
            raise EngineError(
                f"{self._path}: no execution context could be made:{self._log.errors()}"
            )
        context.set_device_memory(self._scratch, self._scratch_bytes)
        made = TrtContext(context, self._cuda.stream, self._log, self._flavor)
        made.select(profile)
        return made

    def keep_kernels(self) -> None:
        """Keep the kernels that were finished until now, for the next start."""
        if self._kernels:
            self._kernels.write(self._contexts.finished_kernels())

    def _kernel_cache(self, digest: str) -> KernelCache | None:
        if not env_flag(KERNEL_CACHE, default=True):
            return None
        facts = {
            "engine": digest,
            self._flavor.title: trt.__version__,
            "gpu": f"{self._cuda.name} {self._cuda.arch}",
            "driver": format_driver(driver_cuda_version()),
        }
        return KernelCache(self._path.parent, facts)

    def _load_error(self, data: mmap.mmap, versions: Mapping[str, str]) -> str:
        """Return why the engine does not load, and advice that follows from what differs."""
        title = self._flavor.title
        reasons = self._flavor.diagnose_engine(self._runtime, data)
        built_with = version_of_module(versions, self._flavor.module)
        errors = self._log.errors()
        return (
            f"{self._path}: {title} {trt.__version__} cannot load this"
            f" engine{f' ({reasons})' if reasons else ''}. It was built for {self._config.gpu_arch}"
            f" with {title} {built_with or '(version unknown)'}, and this GPU is {self._cuda.arch}."
            f" {self._load_advice(built_with, errors)}:{errors}"
        )

    def _load_advice(self, built_with: str | None, errors: str) -> str:
        arch = self._config.gpu_arch
        if re.search(r"out[ _]?of[ _]?memory", errors, re.IGNORECASE):
            return LESS_MEMORY
        found = None
        for number, words in _DRIVER_ERRORS.items():
            if re.search(rf"(cudaError|CUDA error|error code) {number}\b", errors):
                found = words
        driver = driver_reason(BACKENDS[self._config.backend])
        if found is not None or driver is not None:
            return f"The driver is at fault: {driver or found}"
        if self._cuda.arch != arch:
            return f"Build it for {self._cuda.arch}, or run it on a GPU of {arch}"
        if built_with is not None and built_with != trt.__version__:
            install = pip_line(self._flavor.module, built_with)
            return f"Build it again here, or {install or f'use version {built_with}'}"
        return (
            "Both agree, so the file or the driver is at fault: dflash-trt inspect compares the"
            " file with its manifest, and dflash-trt doctor shows the driver"
        )

    def _check_io(self) -> None:
        """Compare the engine's inputs, outputs and profiles with config.json."""
        engine = self._engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        present = {name: _present_tensor(engine, name) for name in names}
        check_present(self._config.io, present, where=str(self._path))
        widest = {BATCH: 1, WIDTH: self._config.max_num_tokens, ROWS: 1}
        self._check_profile(PREFILL_PROFILE, widest)
        block = self._config.block_size
        decode = {BATCH: self._config.max_batch_size, WIDTH: block, ROWS: block}
        self._check_profile(self.decode_profile, decode)

    def _check_profile(self, profile: int, largest: Mapping[str, int]) -> None:
        """Check that the engine was compiled for the largest shapes that a session asks for."""
        sizes = {**largest, CONTEXT: self._config.cache_len, BLOCK: self._config.block_size}
        for tensor in self._config.io:
            if tensor.direction == "output":
                continue
            largest_shape: Any = self._engine.get_tensor_profile_shape(tensor.name, profile)[2]
            limits: tuple[int, ...] = tuple(largest_shape)
            for symbol, limit in zip(tensor.shape, limits, strict=True):
                wanted = sizes[symbol] if isinstance(symbol, str) else symbol
                if wanted > limit:
                    raise EngineError(
                        f"{self._path}: {tensor.name} has at most the shape {list(limits)} in"
                        f" profile {profile}, and config.json asks for {symbol} {wanted}. The"
                        " directory was put together from two engines: build it again."
                    )


def _present_tensor(engine: Any, name: str) -> PresentTensor:
    mode = engine.get_tensor_mode(name)
    dtype = engine.get_tensor_dtype(name)
    shape = tuple(None if size < 0 else size for size in engine.get_tensor_shape(name))
    is_input = mode == trt.TensorIOMode.INPUT
    # Empty where outputs share no memory, and where TensorRT leaves that to the bindings.
    aliases = None if is_input else engine.get_aliased_input_tensor(name) or None
    return PresentTensor("input" if is_input else "output", _dtype_name(dtype), shape, aliases)


def _dtype_name(dtype: Any) -> str:
    names = {
        trt.DataType.FLOAT: "float32",
        trt.DataType.BF16: "bfloat16",
        trt.DataType.FP8: "float8e4m3fn",
        trt.DataType.INT32: "int32",
        trt.DataType.INT64: "int64",
    }
    return names.get(dtype, str(dtype))


class TrtContext:
    """One execution context, with the shapes and addresses that it was last given."""

    def __init__(self, context: Any, stream: int, log: _Log, flavor: Flavor) -> None:
        """Take the context, and the stream in which it runs."""
        self._context = context
        self._stream = stream
        self._log = log
        self._flavor = flavor
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self.has_run = False

    def select(self, profile: int) -> None:
        """Use the ranges of shapes of this profile."""
        self._check(
            self._context.set_optimization_profile_async(profile, self._stream),
            f"profile {profile}",
        )

    def bind(self, shapes: Mapping[str, tuple[int, ...]], addresses: Mapping[str, int]) -> None:
        """Set the inputs' shapes and all addresses that have changed."""
        for name, shape in shapes.items():
            if self._shapes.get(name) != shape:
                self._check(
                    self._context.set_input_shape(name, shape), f"shape {shape} of {name}"
                )
                self._shapes[name] = shape
        for name, address in addresses.items():
            if self._addresses.get(name) != address:
                self._check(
                    self._context.set_tensor_address(name, address),
                    f"address {address:#x} of {name}",
                )
                self._addresses[name] = address

    def is_capturable(self) -> bool:
        """Tell whether a run at the present shapes can be captured in a CUDA graph."""
        return self._flavor.is_capturable(self._context, self._stream)

    def run(self) -> None:
        """Put one run into the stream."""
        self._check(self._context.execute_async_v3(self._stream), "the step")
        self.has_run = True

    def _check(self, accepted: bool, what: str) -> None:
        if not accepted:
            raise EngineError(
                f"{self._flavor.title} refuses {what}:{self._log.errors()}\nIf the engine came from"
                " elsewhere, build it again here; if not, this is a bug in dflash-trt."
            )


class _Log(trt.ILogger):  # type: ignore[misc]
    """Passes TensorRT's messages to Python's logging and keeps its last errors.

    TensorRT calls it, so it never raises.
    """

    _LEVELS = {  # noqa: RUF012 - constant
        trt.ILogger.INTERNAL_ERROR: logging.ERROR,
        trt.ILogger.ERROR: logging.ERROR,
        trt.ILogger.WARNING: logging.WARNING,
    }

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self._errors: list[str] = []

    def log(self, severity: Any, message: str) -> None:
        """Keep and pass on one message."""
        level = self._LEVELS.get(severity, logging.DEBUG)
        if level == logging.ERROR:
            self._errors = [*self._errors, message][-_MAX_KEPT_ERRORS:]
        # Errors end in an EngineError; other messages are for debugging.
        _LOG.debug("TensorRT %s: %s", logging.getLevelName(level).lower(), message)

    def errors(self) -> str:
        """Return the last errors, those of our plugins first, a line each."""
        messages = dict.fromkeys([*trt_plugins.pop_errors(), *self._errors])
        return "".join(f"\n  {message}" for message in messages) or " it gave no reason"
