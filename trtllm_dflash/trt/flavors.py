"""All that differs between TensorRT and TensorRT-RTX where engines are built and run.

TensorRT-RTX compiles for any GPU that it is told, without one, and finishes kernels where the
engine runs. TensorRT compiles for the GPU that it runs on and times tactics there; those timings
can be kept. All else is shared, and tests/trt type-checks it against the bindings of both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from trtllm_dflash.errors import BuildError
from trtllm_dflash.trt.loader import import_tensorrt

if TYPE_CHECKING:
    import tensorrt as full
    import tensorrt_rtx as rtx
else:
    full = rtx = import_tensorrt()  # one of them is this process's

# A tactic may take as much scratch memory as TensorRT allows it, by default all that the GPU has;
# the engine then asks for it beside its caches.
WORKSPACE_BYTES = 4 << 30


class Flavor(Protocol):
    """One of the two; objects of TensorRT are those of its module."""

    title: str
    package: str  # what pip would install in another version

    def configure_builder(
        self, config: Any, archs: Sequence[str], timings: Path | None
    ) -> AbstractContextManager[None]:
        """Around a build: what it is for, and where timings of tactics come from and go to (None:
        nowhere).
        """
        ...

    def context_factory(self, engine: Any) -> Callable[[bool], Any]:
        """Makes execution contexts of an engine, without memory of their own; None if TensorRT
        refuses.

        Its argument says whether a context will run at one set of shapes.
        """
        ...

    def is_capturable(self, context: Any, stream: int) -> bool:
        """Whether a run at the present shapes can be captured in a CUDA graph."""
        ...

    def diagnose_engine(self, runtime: Any, data: Any) -> str:
        """What TensorRT can say of an engine that it does not load, in words; "" if nothing."""
        ...


class TensorRTRTX:
    """For sm80, sm86, sm89, sm120 and sm121."""

    title, package = "TensorRT-RTX", "tensorrt-rtx-cu13"

    @contextmanager
    def configure_builder(
        self, config: rtx.IBuilderConfig, archs: Sequence[str], timings: Path | None
    ) -> Iterator[None]:
        """Any of its GPUs, no tactics are timed."""
        del timings
        # Without it a context may allocate while it runs, and then no CUDA graph can be captured.
        config.set_flag(rtx.BuilderFlag.REQUIRE_USER_ALLOCATION)
        config.num_compute_capabilities = len(archs)
        for index, arch in enumerate(archs):
            config.set_compute_capability(getattr(rtx.ComputeCapability, arch.upper()), index)
        yield

    def context_factory(self, engine: rtx.ICudaEngine) -> Callable[[bool], rtx.IExecutionContext]:
        """With fixed shapes, kernels are compiled for just these before the first run.

        Otherwise they are compiled in the background, and general ones serve until then. All
        contexts share them.
        """
        kernels: list[rtx.IRuntimeCache] = []

        def make(fixed_shapes: bool) -> rtx.IExecutionContext:
            config = engine.create_runtime_config()
            kinds = rtx.DynamicShapesKernelSpecializationStrategy
            config.dynamic_shapes_kernel_specialization_strategy = (
                kinds.EAGER if fixed_shapes else kinds.LAZY
            )
            config.cuda_graph_strategy = (
                rtx.CudaGraphStrategy.DISABLED
            )  # the session captures whole steps itself
            config.set_execution_context_allocation_strategy(
                rtx.ExecutionContextAllocationStrategy.USER_MANAGED
            )
            if not kernels:
                kernels.append(config.create_runtime_cache())
            config.set_runtime_cache(kernels[0])
            return engine.create_execution_context(config)

        return make

    def is_capturable(self, context: rtx.IExecutionContext, stream: int) -> bool:
        """It knows."""
        return bool(context.is_stream_capturable(stream))

    def diagnose_engine(self, runtime: rtx.Runtime, data: Any) -> str:
        """Its diagnostics."""
        _, found = runtime.get_engine_validity(data[: runtime.engine_header_size])
        kinds = rtx.EngineInvalidityDiagnostics.__members__
        return ", ".join(
            name.lower().replace("_", " ")
            for name, kind in kinds.items()
            if found & int(kind.value)
        )


class TensorRT:
    """For sm90, sm100 and sm103, on that GPU."""

    title, package = "TensorRT", "tensorrt-cu13"

    @contextmanager
    def configure_builder(
        self, config: full.IBuilderConfig, archs: Sequence[str], timings: Path | None
    ) -> Iterator[None]:
        """The GPU at hand, whichever `archs` says: the build has made sure that it is that one."""
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
        fresh = timings.with_name(f"{timings.name}.new")
        fresh.write_bytes(memoryview(cache.serialize()))
        fresh.replace(timings)

    def context_factory(self, engine: full.ICudaEngine) -> Callable[[bool], full.IExecutionContext]:
        """Kernels are all compiled: shapes make no difference."""

        def make(fixed_shapes: bool) -> full.IExecutionContext:
            del fixed_shapes
            return engine.create_execution_context(
                full.ExecutionContextAllocationStrategy.USER_MANAGED
            )

        return make

    def is_capturable(self, context: full.IExecutionContext, stream: int) -> bool:
        """It cannot be asked; a capture that fails is an error with CUDA's own words, and
        DFLASH_CUDA_GRAPH=0 helps.
        """
        del context, stream
        return True

    def diagnose_engine(self, runtime: full.Runtime, data: Any) -> str:
        """It says so in its log alone."""
        del runtime, data
        return ""
