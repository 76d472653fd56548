"""The GPU engine: the step graph compiled by TensorRT-RTX, ahead of time, without a GPU. Its only importer."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

import onnx_ir as ir
import tensorrt_rtx as trt

from trtllm_dflash.build.weights import move_weights, weights_of
from trtllm_dflash.errors import BuildError
from trtllm_dflash.graph.io import BATCH, CONTEXT, ROWS, WIDTH, Port

if TYPE_CHECKING:
    from trtllm_dflash.build.request import Job
    from trtllm_dflash.config.build import ResolvedBuild

ENGINE_FILE = "rank0.engine"
Range = tuple[int, int, int]  # smallest, the one to optimize for, largest

# Said of a node's or the graph's own input that the parser drops: the engine would build, and be wrong.
_DROPPED_INPUT = ("Unused Input:", "is unused or used only at compile-time")


def build(model: ir.Model, job: Job) -> bytes:
    """Compile into `job.directory`; returns the serialized graph.

    Weights of the engine's type stay where the checkpoint has them; others are converted, in a file of `job.scratch`.
    """
    job.scratch.mkdir(exist_ok=True)
    weights = weights_of(model)
    converted = [value for value in weights if not isinstance(value.const_value, ir.ExternalTensor)]
    move_weights(converted, job.scratch / "converted.safetensors")
    graph: bytes = ir.to_proto(model).SerializeToString()
    arrays = {str(value.name): value.const_value.numpy() for value in weights if value.const_value}
    compiler = Compiler(BuilderLog(), graph, arrays)
    with (job.directory / ENGINE_FILE).open("wb") as file:
        compiler.compile([job.resolved.arch], profiles(job.ports, job.resolved), file, job.progress)
    return graph


def profiles(ports: Sequence[Port], sizes: ResolvedBuild) -> tuple[dict[str, tuple[tuple[int, ...], ...]], ...]:
    """The context profile (one slot, any width) and the generation profile (all slots, one block wide).

    Each maps an input's name to its smallest, usual and largest shape.
    """
    block, batch, widest, length = sizes.block_size, sizes.max_batch_size, sizes.max_num_tokens, sizes.cache_len
    lengths = (1, max(length // 2, 1), length)
    context = {BATCH: (1, 1, 1), WIDTH: (1, widest, widest), ROWS: (1, 1, block), CONTEXT: lengths}
    generation = {
        BATCH: (1, batch, batch),
        WIDTH: (block, block, block),
        ROWS: (block, block, block),
        CONTEXT: (block, *lengths[1:]),
    }
    return tuple(
        {port.name: _shapes(port, symbols) for port in ports if port.direction == "input"}
        for symbols in (context, generation)
    )


def _shapes(port: Port, symbols: Mapping[str, Range]) -> tuple[tuple[int, ...], ...]:
    return tuple(
        tuple(symbols[size][bound] if isinstance(size, str) else size for size in port.shape) for bound in range(3)
    )


class BuilderLog(trt.ILogger):  # type: ignore[misc]
    """Sends TensorRT's messages to stderr, keeps those above information; never raises, since TensorRT calls it."""

    _NAMES: Mapping[Any, str] = {
        trt.ILogger.INTERNAL_ERROR: "internal error",
        trt.ILogger.ERROR: "error",
        trt.ILogger.WARNING: "warning",
        trt.ILogger.INFO: "info",
    }

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.warnings: list[str] = []
        self.errors: list[str] = []

    def log(self, severity: Any, message: str) -> None:
        """Keep and print one message."""
        name = self._NAMES.get(severity)
        if name is None:
            return
        if name == "warning":
            self.warnings.append(message)
        elif name != "info":
            self.errors.append(message)
        sys.stderr.write(f"TensorRT {name}: {message}\n")

    def dropped_inputs(self) -> list[str]:
        """The messages that say an input is ignored, each once."""
        found = (text for text in self.warnings if any(sign in text for sign in _DROPPED_INPUT))
        return list(dict.fromkeys(found))


class Compiler:
    """A parsed network, ready to be compiled; `weights` are the graph's external tensors, which it keeps alive."""

    def __init__(self, log: BuilderLog, graph: bytes, weights: Mapping[str, Any]) -> None:
        self._log, self._weights = log, weights
        self._builder = trt.Builder(log)
        self._network = self._builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        self._parser = trt.OnnxParser(self._network, log)
        self._parse(graph)

    def _parse(self, graph: bytes) -> None:
        # Given by address: the parser opens external data only inside the graph's own folder, and would copy it.
        parser, weights = self._parser, self._weights.items()
        loaded = parser.load_model_proto(graph) and all(
            parser.load_initializer(name, data.ctypes.data, data.nbytes) for name, data in weights
        )
        if not (loaded and parser.parse_model_proto()):
            errors = [str(parser.get_error(index).desc()) for index in range(parser.num_errors)] or self._log.errors
            raise BuildError(f"TensorRT-RTX cannot parse the step graph ({len(errors)} errors):{_listed(errors)}")
        self._refuse_dropped_inputs()

    def _refuse_dropped_inputs(self) -> None:
        dropped = self._log.dropped_inputs()
        if dropped:
            raise BuildError(
                f"TensorRT-RTX would ignore {len(dropped)} inputs of the step graph, and the engine would silently be "
                f"wrong:{_listed(dropped)}"
            )

    def compile(
        self,
        archs: Sequence[str],
        shapes: Sequence[Mapping[str, tuple[tuple[int, ...], ...]]],
        file: BinaryIO,
        progress: Callable[[str, int, int], None],
    ) -> None:
        """Compile one engine for all of `archs`, with a profile for each of `shapes`, streaming it into `file`.

        Raises:
            BuildError: if TensorRT refuses, with all its errors.
        """
        config = self._builder.create_builder_config()
        config.num_compute_capabilities = len(archs)
        for index, arch in enumerate(archs):
            config.set_compute_capability(getattr(trt.ComputeCapability, arch.upper()), index)
        monitor = ProgressMonitor(progress)
        config.progress_monitor = monitor
        for ranges in shapes:
            profile = self._builder.create_optimization_profile()
            for name, bounds in ranges.items():
                profile.set_shape(name, *bounds)
            config.add_optimization_profile(profile)
        writer = EngineWriter(file)
        built = self._builder.build_serialized_network_to_stream(self._network, config, writer)
        if writer.failure is not None:
            raise writer.failure
        if not built:
            names = ", ".join(archs)
            raise BuildError(f"TensorRT-RTX could not compile the step for {names}:{_listed(self._log.errors)}")
        self._refuse_dropped_inputs()


class EngineWriter(trt.IStreamWriter):  # type: ignore[misc]
    """Writes the engine as it is serialized, so that it is never whole in memory."""

    def __init__(self, file: BinaryIO) -> None:
        trt.IStreamWriter.__init__(self)
        self._file = file
        self.failure: OSError | None = None

    def write(self, data: bytes) -> int:
        """Write one chunk; 0 tells TensorRT to stop, and `failure` says why, since it may not see an exception."""
        try:
            return self._file.write(data)
        except OSError as error:
            self.failure = error
            return 0


class ProgressMonitor(trt.IProgressMonitor):  # type: ignore[misc]
    """Passes on the outermost phase that TensorRT is in; called from its threads."""

    def __init__(self, progress: Callable[[str, int, int], None]) -> None:
        trt.IProgressMonitor.__init__(self)
        self._progress = progress
        self._steps: dict[str, int] = {}

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        """A phase begins; nested ones are not shown."""
        if parent_phase is None:
            self._steps[phase_name] = num_steps
            self._progress(f"compiling: {phase_name}", 0, num_steps)

    def step_complete(self, phase_name: str, step: int) -> bool:
        """A step of a phase is done. True: go on."""
        if phase_name in self._steps:
            self._progress(f"compiling: {phase_name}", step + 1, self._steps[phase_name])
        return True

    def phase_finish(self, phase_name: str) -> None:
        """A phase ends."""
        if phase_name in self._steps:
            total = self._steps.pop(phase_name)
            self._progress(f"compiling: {phase_name}", total, total)


def _listed(messages: Sequence[str]) -> str:
    return "".join(f"\n  {message}" for message in messages) or " it gave no reason"
