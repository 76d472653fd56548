"""The GPU engine: the step graph compiled by TensorRT or TensorRT-RTX."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import onnx_ir as ir

from trtllm_dflash.builder.dropped_parts import dropped_parts, unused_values
from trtllm_dflash.builder.external_weights import move_weights, stored_bytes, weights_of
from trtllm_dflash.builder.job import BuildResult
from trtllm_dflash.builder.joined_linears import join_linears
from trtllm_dflash.builder.optimization_profiles import Profile, profiles
from trtllm_dflash.builder.trt_callbacks import BuilderLog, EngineWriter, ProgressMonitor
from trtllm_dflash.engine_dir.files import ENGINE_FILE
from trtllm_dflash.errors import BuildError
from trtllm_dflash.graph.kernel_specs import KernelVariant
from trtllm_dflash.graph.plugin_nodes import kernel_variants
from trtllm_dflash.hardware import devices
from trtllm_dflash.hardware.backends import BACKENDS
from trtllm_dflash.log import Progress
from trtllm_dflash.trt.loader import flavor, import_tensorrt
from trtllm_dflash.trt_plugins import pop_errors, register
from trtllm_dflash.trt_plugins.nvrtc import Cubin, compile_in_subprocess

if TYPE_CHECKING:
    import tensorrt_rtx as trt

    from trtllm_dflash.builder.job import BuildJob

else:
    trt = import_tensorrt()


# Of the weights that differ, an engine holds at least this share. Most hold all.
_KEPT_SHARE = 0.5
_ENDS = 256  # bytes
_LAST_MESSAGES = 5


def build(make_model: Callable[[], ir.Model], job: BuildJob) -> BuildResult:
    """Compile into `job.directory`, with our kernels if the graph has plugin nodes.

    Weights of the engine's type are read from the checkpoint's own files. Others are converted, in
    a file of `job.scratch`.
    """
    if BACKENDS[job.resolved.backend].needs_gpu:
        devices.set_current_device(devices.first_gpu_index(job.resolved.gpu_arch))
    job.scratch.mkdir(exist_ok=True)
    compiler, cubins = _parse(make_model(), job)
    gc.collect()  # frees the model, whose nodes and values refer to each other
    archs = [job.resolved.gpu_arch]
    shapes = profiles(job.io, job.resolved)
    with (job.directory / ENGINE_FILE).open("wb") as file:
        compiler.compile(archs, shapes, file, job.progress, timings=job.timings)
    kernels = [cubin.facts() for cubin in cubins]
    return BuildResult(compiler.graph, kernels, {flavor().module: trt.__version__})


def _parse(model: ir.Model, job: BuildJob) -> tuple[Compiler, list[Cubin]]:
    """Return the model as TensorRT has parsed it, and its kernels."""
    weights = weights_of(model)
    converted = [
        value for value in weights if not isinstance(value.const_value, ir.ExternalTensor)
    ]
    move_weights(converted, job.scratch / "converted.safetensors")
    join_linears(model)
    cubins = _compile_kernels(model, job)
    return Compiler(BuilderLog(), model, {cubin.key: cubin.code for cubin in cubins}), cubins


def _compile_kernels(model: ir.Model, job: BuildJob) -> list[Cubin]:
    variants = kernel_variants(model)
    cubins = []
    if variants:
        job.progress("compiling kernels", 0, len(variants))
    compile_variant = partial(compile_in_subprocess, arch=job.resolved.gpu_arch)
    with ThreadPoolExecutor() as pool:
        for done, cubin in enumerate(pool.map(compile_variant, variants), 1):
            job.progress("compiling kernels", done, len(variants))
            sys.stderr.write(f"NVRTC: {cubin.key} for {cubin.arch}:\n{cubin.log}\n")
            cubins.append(cubin)
    return cubins


class Compiler:
    """A model whose weights are external tensors, parsed and ready to be compiled.

    `graph` is the model, serialized. `cubins` are the kernels of its plugin nodes.
    """

    def __init__(
        self,
        log: BuilderLog,
        model: ir.Model,
        cubins: Mapping[KernelVariant, bytes] | None = None,
    ) -> None:
        self.graph: bytes = ir.to_proto(model).SerializeToString()
        self._log = log
        self._flavor = flavor()
        # TensorRT holds the addresses of these memory maps until the engine is compiled.
        self._weights: dict[str, np.ndarray] = {}
        for value in weights_of(model):
            if value.const_value is not None:
                self._weights[str(value.name)] = stored_bytes(value.const_value)
        # Before the registry is touched: TensorRT keeps its first log.
        self._builder = trt.Builder(log)
        register(cubins or {})
        pop_errors()
        strongly_typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        self._network = self._builder.create_network(strongly_typed)
        self._parser = trt.OnnxParser(self._network, log)
        self._parse()
        self._refuse(dropped_parts(self._network, unused_values(model)))

    def _parse(self) -> None:
        if self._load() and self._parser.parse_model_proto():
            return
        count = self._parser.num_errors
        errors = [_parser_error(self._parser.get_error(index)) for index in range(count)]
        reasons = [*pop_errors(), *(errors or self._log.errors)]
        raise BuildError(f"{self._flavor.title} cannot parse the step graph:{_listed(reasons)}")

    def _load(self) -> bool:
        """Give the parser the graph, and the weights by address.

        It would open external data only in the graph's own folder, and copy it.
        """
        if not self._parser.load_model_proto(self.graph):
            return False
        for name, data in self._weights.items():
            if not self._parser.load_initializer(name, data.ctypes.data, data.nbytes):
                return False
        return True

    def _refuse(self, dropped: Sequence[str]) -> None:
        if dropped:
            raise BuildError(
                f"{self._flavor.title} would silently drop parts of the step graph, and the engine"
                f" would be wrong:{_listed(dropped)}"
            )

    def compile(
        self,
        archs: Sequence[str],
        shapes: Sequence[Profile],
        file: BinaryIO,
        progress: Progress,
        *,
        timings: Path | None = None,
    ) -> None:
        """Compile one engine for all of `archs` into `file`, with a profile for each of `shapes`.

        `timings` is a file of the timings of tactics, to start from and to add to. It is not used
        where no tactics are timed.

        Raises:
            BuildError: if TensorRT refuses, with all its errors.
        """
        config = self._builder.create_builder_config()
        # Plugins update caches in place.
        config.set_preview_feature(trt.PreviewFeature.ALIASED_PLUGIN_IO_10_03, True)
        # Products of recurrent states are in float32, and with 10 bits they would drift.
        config.clear_flag(trt.BuilderFlag.TF32)
        monitor = ProgressMonitor(progress)
        config.progress_monitor = monitor
        for ranges in shapes:
            profile = self._builder.create_optimization_profile()
            for name, bounds in ranges.items():
                profile.set_shape(name, *bounds)
            config.add_optimization_profile(profile)
        writer = EngineWriter(file)
        with self._flavor.configure_builder(config, archs, timings):
            built = self._builder.build_serialized_network_to_stream(
                self._network, config, writer
            )
        if writer.failure is not None:
            raise writer.failure
        refusals = pop_errors()  # not all of them stop TensorRT
        if not built or refusals:
            names = ", ".join(archs)
            errors = [*refusals, *self._log.errors]
            raise BuildError(
                f"{self._flavor.title} could not compile the step for {names}:{_listed(errors)}"
                f"{memory_advice(errors)}"
            )
        self._check_size(writer.written, archs)
        self._refuse(self._log.dropped_inputs())

    def _check_size(self, written: int, archs: Sequence[str]) -> None:
        """Check that an engine of `written` bytes can hold what went in.

        TensorRT's own success is no proof: bindings over another version's library report it and
        write nothing.
        """
        header = self._flavor.header_bytes(self._log)
        least = header + int(_KEPT_SHARE * distinct_bytes(self._weights.values()))
        if written < least:
            raise BuildError(
                f"{self._flavor.title} reports success for {', '.join(archs)} and has written"
                f" {written} bytes, where header and weights take at least {least}. Its bindings"
                " and its library may be of different versions; install it again. It said last:"
                f"{_listed([*self._log.errors, *self._log.warnings][-_LAST_MESSAGES:])}"
            )


def distinct_bytes(weights: Iterable[np.ndarray]) -> int:
    """Return the bytes of all weights, each uint8 [N]; those that look the same count once.

    TensorRT stores equal constants once. Weights look the same if they have one size and begin and
    end alike.
    """
    sizes = {}
    for data in weights:
        ends = data[:_ENDS].tobytes(), data[-_ENDS:].tobytes()
        sizes[data.nbytes, *ends] = data.nbytes
    return sum(sizes.values())


def _parser_error(error: Any) -> str:
    return f"{error.node_operator()} (node {error.node_name()}): {error.desc()}"


def memory_advice(errors: Sequence[str]) -> str:
    """Return what helps against a step whose intermediate results are too large, else ""."""
    if not any("OutOfMemory" in error for error in errors):
        return ""
    return (
        "\nThe intermediate results of a step are larger than its pool of memory. Leave"
        " --no-plugins out, or lower --max-batch-size, --max-seq-len or --max-num-tokens;"
        " --dry-run shows what a step needs"
    )


def _listed(messages: Sequence[str]) -> str:
    return "".join(f"\n  {message}" for message in messages) or " it gave no reason"
