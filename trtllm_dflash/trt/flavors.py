"""The two flavors of TensorRT, and everything that differs between them.

TensorRT-RTX compiles for any GPU without one, and finishes its kernels where the engine runs.
TensorRT compiles for the GPU at hand and times tactics there; a timing cache keeps the times.
All other code is shared, and tests/trt type-checks it against the bindings of both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from trtllm_dflash.atomic.whole_file import write_whole
from trtllm_dflash.errors import BuildError
from trtllm_dflash.trt.loader import import_tensorrt

if TYPE_CHECKING:
    import tensorrt as full
    import tensorrt_rtx as rtx
else:
    full = rtx = import_tensorrt()  # one of them is this process's

# By default a tactic may take all of the GPU's memory as scratch space, which the engine then needs
# beside its caches.
WORKSPACE_BYTES = 4 << 30


class Flavor(Protocol):
    """TensorRT or TensorRT-RTX; all TensorRT objects come from its module."""

    title: str
    module: str

    def configure_builder(
        self, config: Any, archs: Sequence[str], timings: Path | None
    ) -> AbstractContextManager[None]:
        """Set up a builder configuration for `archs` during a build.

        Tactic timings are read from and written to the file `timings`, if given.
        """
        ...

    def header_bytes(self, log: Any) -> int:
        """Return the bytes of an engine's header, without which nothing is an engine."""
        ...

    def contexts(self, engine: Any, kept: bytes | None) -> Contexts:
        """Return what makes an engine's execution contexts; `kept`: its finished kernels."""
        ...

    def is_capturable(self, context: Any, stream: int) -> bool:
        """Return whether a run at the present shapes can be captured in a CUDA graph."""
        ...

    def diagnose_engine(self, runtime: Any, data: Any) -> str:
        """Return why an engine does not load, "" if TensorRT does not say."""
        ...


class Contexts(Protocol):
    """Makes execution contexts of one engine, without memory of their own."""

    takes_kept: bool  # whether the kernels that were kept are used

    def make(self, *, fixed_shapes: bool) -> Any:
        """Return a context, None if TensorRT refuses; it may run at one set of shapes only."""
        ...

    def finished_kernels(self) -> bytes:
        """Return the kernels that were finished here, empty where the engine holds them."""
        ...


class TensorRTRTX:
    """TensorRT-RTX, for sm80, sm86, sm89, sm120 and sm121."""

    title = "TensorRT-RTX"
    module = "tensorrt_rtx"

    @contextmanager
    def configure_builder(
        self, config: rtx.IBuilderConfig, archs: Sequence[str], timings: Path | None
    ) -> Iterator[None]:
        """Set the GPU architectures; no tactics are timed, so `timings` is unused."""
        del timings
        # Without this flag a context may allocate while it runs, which CUDA graphs do not allow.
        config.set_flag(rtx.BuilderFlag.REQUIRE_USER_ALLOCATION)
        config.num_compute_capabilities = len(archs)
        for index, arch in enumerate(archs):
            config.set_compute_capability(getattr(rtx.ComputeCapability, arch.upper()), index)
        yield

    def header_bytes(self, log: rtx.ILogger) -> int:
        """Return the size that TensorRT-RTX states."""
        return int(rtx.Runtime(log).engine_header_size)

    def contexts(self, engine: rtx.ICudaEngine, kept: bytes | None) -> Contexts:
        """Return a maker of contexts that share their finished kernels."""
        return _ContextsOfRTX(engine, kept)

    def is_capturable(self, context: rtx.IExecutionContext, stream: int) -> bool:
        """Ask the execution context."""
        return bool(context.is_stream_capturable(stream))

    def diagnose_engine(self, runtime: rtx.Runtime, data: Any) -> str:
        """Return TensorRT-RTX's validity diagnostics."""
        _, found = runtime.get_engine_validity(data[: runtime.engine_header_size])
        flags = rtx.EngineInvalidityDiagnostics.__members__
        names = [name for name, flag in flags.items() if found & int(flag.value)]
        return ", ".join(name.lower().replace("_", " ") for name in names)


class _ContextsOfRTX:
    """Contexts of TensorRT-RTX.

    With fixed shapes, kernels are compiled for these shapes before the first run. Otherwise they
    are compiled in the background, and general kernels serve until then.
    """

    def __init__(self, engine: rtx.ICudaEngine, kept: bytes | None) -> None:
        self._engine = engine
        self._kernels = engine.create_runtime_config().create_runtime_cache()
        # TensorRT-RTX checks for itself that they are of this GPU, driver and version.
        self.takes_kept = kept is not None and bool(self._kernels.deserialize(kept))

    def make(self, *, fixed_shapes: bool) -> rtx.IExecutionContext:
        config = self._engine.create_runtime_config()
        strategies = rtx.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = (
            strategies.EAGER if fixed_shapes else strategies.LAZY
        )
        # The session captures whole steps itself.
        config.cuda_graph_strategy = rtx.CudaGraphStrategy.DISABLED
        config.set_execution_context_allocation_strategy(
            rtx.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        config.set_runtime_cache(self._kernels)
        return self._engine.create_execution_context(config)

    def finished_kernels(self) -> bytes:
        data = self._kernels.serialize()
        return b"" if data is None else bytes(memoryview(data))


class TensorRT:
    """TensorRT, for sm90, sm100 and sm103; it builds on the GPU that runs the engine."""

    title = "TensorRT"
    module = "tensorrt"

    @contextmanager
    def configure_builder(
        self, config: full.IBuilderConfig, archs: Sequence[str], timings: Path | None
    ) -> Iterator[None]:
        """Set up a build for the GPU at hand, which the caller has checked against `archs`.

        Raises:
            BuildError: for several architectures, or a timing cache of another GPU or version. Also
                if TensorRT returns none in the end, or it cannot be written.
        """
        if len(archs) != 1:
            raise BuildError(
                f"TensorRT compiles for the one GPU that it runs on, and not for {', '.join(archs)}"
            )
        config.set_memory_pool_limit(full.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
        if timings is None:
            yield
            return
        cache = config.create_timing_cache(timings.read_bytes() if timings.exists() else b"")
        if not config.set_timing_cache(cache, False):
            raise BuildError(
                f"--timing-cache {timings} was made on another GPU or by another TensorRT. Give"
                " another file, or remove it"
            )
        yield
        _write_timings(timings, cache.serialize())

    def header_bytes(self, log: full.ILogger) -> int:
        """Return 1: TensorRT does not state the size."""
        del log
        return 1

    def contexts(self, engine: full.ICudaEngine, kept: bytes | None) -> Contexts:
        """Return a maker of contexts; the engine holds its kernels, so none are `kept`."""
        del kept
        return _ContextsOfTensorRT(engine)

    def is_capturable(self, context: full.IExecutionContext, stream: int) -> bool:
        """Return True, since TensorRT cannot be asked.

        A capture that fails is reported with CUDA's own error; DFLASH_CUDA_GRAPH=0 avoids it.
        """
        del context, stream
        return True

    def diagnose_engine(self, runtime: full.Runtime, data: Any) -> str:
        """Return "", since TensorRT gives the reason only in its log."""
        del runtime, data
        return ""


class _ContextsOfTensorRT:
    """Contexts of TensorRT; the shapes make no difference."""

    takes_kept = False

    def __init__(self, engine: full.ICudaEngine) -> None:
        self._engine = engine

    def make(self, *, fixed_shapes: bool) -> full.IExecutionContext:
        del fixed_shapes
        return self._engine.create_execution_context(
            full.ExecutionContextAllocationStrategy.USER_MANAGED
        )

    def finished_kernels(self) -> bytes:
        return b""


def _write_timings(path: Path, timings: Any) -> None:
    """Write a timing cache in one step. Several builds may share the file."""
    data = memoryview(timings).tobytes() if timings is not None else b""
    if not data:
        raise BuildError(
            f"--timing-cache {path}: TensorRT has returned no timings, so the file stays as it was."
            " Build without the option"
        )
    try:
        write_whole(path, data)
    except OSError as error:
        raise BuildError(f"--timing-cache {path}: cannot be written: {error}") from error
