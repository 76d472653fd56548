"""The GPU engine: the step graph compiled by TensorRT, of either kind. Its only importer where
engines are built.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import onnx_ir as ir

from trtllm_dflash.builder.external_weights import move_weights, stored_bytes, weights_of
from trtllm_dflash.builder.job import BuildResult
from trtllm_dflash.engine_dir.files import ENGINE_FILE
from trtllm_dflash.engine_dir.io_tensors import BATCH, CONTEXT, ROWS, WIDTH, IoTensor
from trtllm_dflash.errors import BuildError
from trtllm_dflash.graph.kernel_specs import KernelVariant
from trtllm_dflash.graph.plugin_nodes import kernel_variants
from trtllm_dflash.hardware import devices
from trtllm_dflash.hardware.backends import BACKENDS
from trtllm_dflash.hardware.memory import return_freed_memory
from trtllm_dflash.trt.loader import flavor, import_tensorrt
from trtllm_dflash.trt_plugins import pop_errors, register
from trtllm_dflash.trt_plugins.nvrtc import Cubin, compile_in_subprocess

if TYPE_CHECKING:
    import tensorrt_rtx as trt

    from trtllm_dflash.builder.job import BuildJob
    from trtllm_dflash.options.resolved_build import ResolvedBuild

else:
    trt = import_tensorrt()

Range = tuple[int, int, int]  # smallest, the one to optimize for, largest

# What the builder says of an input of the engine that changes nothing.
_DROPPED_INPUT = ("Unused Input:", "is unused or used only at compile-time")
# Layers that leave an output of theirs unused by design: ArgMax becomes a TopK whose values nobody
# asks for.
_HALF_USED = (trt.LayerType.TOPK,)


def build(make_model: Callable[[], ir.Model], job: BuildJob) -> BuildResult:
    """Compile into `job.directory`, with our kernels if the graph has plugin nodes.

    Weights of the engine's type stay where the checkpoint has them; others are converted, in a file
    of `job.scratch`.
    """
    if BACKENDS[job.resolved.backend].needs_gpu:
        devices.set_current_device(devices.first_gpu_index(job.resolved.gpu_arch))
    job.scratch.mkdir(exist_ok=True)
    compiler, cubins = _parsed(make_model(), job)
    gc.collect()  # the model is no longer needed, and its nodes and values hold each other
    with (job.directory / ENGINE_FILE).open("wb") as file:
        compiler.compile(
            [job.resolved.gpu_arch],
            profiles(job.ports, job.resolved),
            file,
            job.progress,
            timings=job.timings,
        )
    return BuildResult(
        compiler.graph, [cubin.facts() for cubin in cubins], {flavor().package: trt.__version__}
    )


def _parsed(model: ir.Model, job: BuildJob) -> tuple[Compiler, list[Cubin]]:
    """The model as TensorRT holds it, and its kernels."""
    weights = weights_of(model)
    converted = [value for value in weights if not isinstance(value.const_value, ir.ExternalTensor)]
    move_weights(converted, job.scratch / "converted.safetensors")
    cubins = _compile_kernels(model, job)
    return Compiler(BuilderLog(), model, {cubin.key: cubin.code for cubin in cubins}), cubins


def _compile_kernels(model: ir.Model, job: BuildJob) -> list[Cubin]:
    keys, cubins = kernel_variants(model), []
    if keys:
        job.progress("compiling kernels", 0, len(keys))
    with ThreadPoolExecutor() as pool:
        for done, cubin in enumerate(
            pool.map(partial(compile_in_subprocess, arch=job.resolved.gpu_arch), keys), 1
        ):
            job.progress("compiling kernels", done, len(keys))
            sys.stderr.write(f"NVRTC: {cubin.key} for {cubin.arch}:\n{cubin.log}\n")
            cubins.append(cubin)
    return cubins


def profiles(
    ports: Sequence[IoTensor], sizes: ResolvedBuild
) -> tuple[dict[str, tuple[tuple[int, ...], ...]], ...]:
    """The context profile (one slot, any width) and the generation profile (all slots, up to a
    block wide).

    The generation profile is made for draft_len, and takes fewer drafts (none: plain decoding) and
    more.

    Each maps an input's name to its smallest, usual and largest shape.
    """
    block, batch, widest, length = (
        sizes.block_size,
        sizes.max_batch_size,
        sizes.max_num_tokens,
        sizes.cache_len,
    )
    lengths, verified = (1, max(length // 2, 1), length), (1, 1 + sizes.draft_len, block)
    context = {BATCH: (1, 1, 1), WIDTH: (1, widest, widest), ROWS: (1, 1, block), CONTEXT: lengths}
    generation = {
        BATCH: (1, batch, batch),
        WIDTH: verified,
        ROWS: verified,
        CONTEXT: (block, *lengths[1:]),
    }
    return tuple(
        {port.name: _shapes(port, symbols) for port in ports if port.direction == "input"}
        for symbols in (context, generation)
    )


def _shapes(port: IoTensor, symbols: Mapping[str, Range]) -> tuple[tuple[int, ...], ...]:
    return tuple(
        tuple(symbols[size][bound] if isinstance(size, str) else size for size in port.shape)
        for bound in range(3)
    )


class BuilderLog(trt.ILogger):  # type: ignore[misc]
    """Sends TensorRT's messages to stderr, keeps those above information; never raises, since
    TensorRT calls it.
    """

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
        with suppress(OSError, ValueError):  # a full disk or a closed stream
            sys.stderr.write(f"TensorRT {name}: {message}\n")

    def dropped_inputs(self) -> list[str]:
        """The messages that say an input is ignored, each once."""
        found = (text for text in self.warnings if any(sign in text for sign in _DROPPED_INPUT))
        return list(dict.fromkeys(found))


class Compiler:
    """A model whose weights are external tensors, parsed and ready to be compiled. `graph`: the
    model, serialized.

    `cubins` are the kernels of its plugin nodes.
    """

    def __init__(
        self, log: BuilderLog, model: ir.Model, cubins: Mapping[KernelVariant, bytes] | None = None
    ) -> None:
        self.graph: bytes = ir.to_proto(model).SerializeToString()
        self._log, self._flavor = log, flavor()
        # Kept, since TensorRT holds the addresses of these memory maps until the engine is
        # compiled.
        weights = ((str(value.name), value.const_value) for value in weights_of(model))
        self._weights = {
            name: stored_bytes(tensor) for name, tensor in weights if tensor is not None
        }
        self._builder = trt.Builder(
            log
        )  # before the registry is touched: TensorRT keeps its first log
        register(cubins or {})
        pop_errors()
        self._network = self._builder.create_network(
            1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        )
        self._parser = trt.OnnxParser(self._network, log)
        self._parse()
        self._refuse(_dropped_parts(self._network, _unused_values(model)))

    def _parse(self) -> None:
        # Given by address: the parser opens external data only inside the graph's own folder, and
        # would copy it.
        parser, weights = self._parser, self._weights.items()
        loaded = parser.load_model_proto(self.graph) and all(
            parser.load_initializer(name, data.ctypes.data, data.nbytes) for name, data in weights
        )
        if not (loaded and parser.parse_model_proto()):
            errors = [
                _parser_error(parser.get_error(index)) for index in range(parser.num_errors)
            ] or self._log.errors
            raise BuildError(
                f"{self._flavor.title} cannot parse the step"
                f" graph:{_listed([*pop_errors(), *errors])}"
            )

    def _refuse(self, dropped: Sequence[str]) -> None:
        if dropped:
            raise BuildError(
                f"{self._flavor.title} would silently drop parts of the step graph, and the engine"
                f" would be wrong:{_listed(dropped)}"
            )

    def compile(
        self,
        archs: Sequence[str],
        shapes: Sequence[Mapping[str, tuple[tuple[int, ...], ...]]],
        file: BinaryIO,
        progress: Callable[[str, int, int], None],
        *,
        timings: Path | None = None,
    ) -> None:
        """Compile one engine for all of `archs`, with a profile for each of `shapes`, streaming it
        into `file`.

        `timings`: a file of tactics' timings, to start from and to add to, where tactics are timed.

        Raises:
            BuildError: if TensorRT refuses, with all its errors.
        """
        config = self._builder.create_builder_config()
        config.set_preview_feature(
            trt.PreviewFeature.ALIASED_PLUGIN_IO_10_03, True
        )  # caches, updated in place
        monitor = ProgressMonitor(progress)
        config.progress_monitor = monitor
        for ranges in shapes:
            profile = self._builder.create_optimization_profile()
            for name, bounds in ranges.items():
                profile.set_shape(name, *bounds)
            config.add_optimization_profile(profile)
        writer = EngineWriter(file)
        with self._flavor.configure_builder(config, archs, timings):
            built = self._builder.build_serialized_network_to_stream(self._network, config, writer)
        if writer.failure is not None:
            raise writer.failure
        refusals = pop_errors()  # not all of them stop TensorRT
        if not built or refusals:
            names, errors = ", ".join(archs), [*refusals, *self._log.errors]
            raise BuildError(
                f"{self._flavor.title} could not compile the step for {names}:{_listed(errors)}"
            )
        self._refuse(self._log.dropped_inputs())


class EngineWriter(trt.IStreamWriter):  # type: ignore[misc]
    """Writes the engine as it is serialized, so that it is never whole in memory."""

    def __init__(self, file: BinaryIO) -> None:
        trt.IStreamWriter.__init__(self)
        self._file = file
        self.failure: OSError | None = None

    def write(self, data: bytes) -> int:
        """Write one chunk; 0 tells TensorRT to stop, and `failure` says why, since it may not see
        an exception.
        """
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
        # each leaves many small blocks: an eighth of the demo pair's memory in the end
        return_freed_memory()
        if phase_name in self._steps:
            total = self._steps.pop(phase_name)
            self._progress(f"compiling: {phase_name}", total, total)


def _dropped_parts(network: Any, unused: Collection[str]) -> list[str]:
    """What was parsed and leads nowhere, though the graph uses it: names not in `unused` that no
    layer reads.

    So the parser has ignored an operator's input. It does not say so itself, and the builder only
    mentions inputs of the whole engine.
    """
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    read = {
        tensor.name for layer in layers for tensor in _tensors(layer.num_inputs, layer.get_input)
    }
    read |= {tensor.name for tensor in _tensors(network.num_outputs, network.get_output)}
    inputs = (tensor.name for tensor in _tensors(network.num_inputs, network.get_input))
    results = [
        f"result {tensor.name} of {layer.name}"
        for layer in layers
        if layer.type not in _HALF_USED
        for tensor in _tensors(layer.num_outputs, layer.get_output)
        if tensor.name not in read and tensor.name not in unused
    ]
    return [f"input {name}" for name in inputs if name not in read] + results


def _tensors(count: int, get: Callable[[int], Any]) -> list[Any]:
    """The tensors 0 … count-1 of a layer or network, without absent optional ones."""
    return [tensor for tensor in map(get, range(count)) if tensor is not None]


def _unused_values(model: ir.Model) -> set[str]:
    """Names of the values that the model itself leaves unused, such as a loop's counter."""
    scopes: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    nodes = [node for scope in scopes for node in scope.all_nodes()]
    attributes = [attribute for node in nodes for attribute in node.attributes.values()]
    bodies = [
        attribute.as_graph() for attribute in attributes if attribute.type == ir.AttributeType.GRAPH
    ]
    values = [value for node in nodes for value in node.outputs] + [
        value for body in bodies for value in body.inputs
    ]
    return {str(value.name) for value in values if not value.uses() and not value.is_graph_output()}


def _parser_error(error: Any) -> str:
    return f"{error.node_operator()} (node {error.node_name()}): {error.desc()}"


def _listed(messages: Sequence[str]) -> str:
    return "".join(f"\n  {message}" for message in messages) or " it gave no reason"
