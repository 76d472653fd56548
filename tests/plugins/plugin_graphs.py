"""Work for processes in which TensorRT's parser finds its library: graphs with plugins, compiled
and looked at.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import onnx_ir as ir

from trtllm_dflash.builder.resolve import resolve_models
from trtllm_dflash.builder.worker_process import worker_environment
from trtllm_dflash.errors import DFlashError
from trtllm_dflash.graph.builder import DTYPES, OPS_DOMAIN, OPSET, GraphBuilder
from trtllm_dflash.graph.kernel_specs import KernelVariant
from trtllm_dflash.graph.kv_scales import KvScales
from trtllm_dflash.graph.ops import OPS
from trtllm_dflash.graph.plugin_nodes import kernel_variants, lower_to_plugins
from trtllm_dflash.graph.step import build_step
from trtllm_dflash.options.build import BuildConfig

SIZES = {
    "B": 2,
    "S": 3,
    "T": 4,
    "Hq": 6,
    "Hkv": 2,
    "D": 64,
    "cache_len": 32,
    "R": 4,
    "V": 97,
    "U": 32,
    "L": 16,
    # of DFlashGatedDelta, with two key heads for four value heads
    "C": 1024,
    "2Hv": 8,
    "Hv": 4,
    "Dk": 128,
    "Dv": 128,
    "Kc": 4,
}
Shape = tuple[int | str, ...]
_ENGINE_LAYER = re.compile(r"^Layer\((\w+)\): ([^,\n]*)", re.MULTILINE)


@contextmanager
def parser_processes(count: int) -> Iterator[Executor]:
    """Processes whose environment is the builder's: a plugin node aborts the parser in any
    other.
    """
    with (
        worker_environment() as environment,
        patch.dict("os.environ", environment),
        ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool,
    ):
        yield pool
        pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class Layer:
    """A plugin layer of a network as it was read back: what it would serialize, the kernel by its
    size only.
    """

    name: str
    plugin: tuple[str, str, str]
    num_inputs: int
    num_outputs: int
    aliased_inputs: tuple[int, ...]
    fields: Mapping[str, int | float | bytes]


@dataclass(frozen=True)
class Compiled:
    """An engine and what was in its network; `engine_layers`: kind and name of what its two
    profiles run.
    """

    inputs: Mapping[str, str]  # the engine's, with their types
    layers: tuple[Layer, ...]
    kernels: Mapping[KernelVariant, int]
    cubins_in_engine: bool
    engine_layers: frozenset[tuple[str, str]]


def plugin_layers(network: Any) -> tuple[Layer, ...]:
    """Return the plugin layers of a network, in order."""
    import tensorrt_rtx as trt

    found = []
    for layer in (network.get_layer(index) for index in range(network.num_layers)):
        if layer.type != trt.LayerType.PLUGIN_V3:
            continue
        layer.__class__ = trt.IPluginV3Layer
        plugin = layer.plugin
        fields = {field.name: _value(field) for field in plugin.get_fields_to_serialize()}
        aliases = tuple(plugin.get_aliased_input(index) for index in range(layer.num_outputs))
        identity = (plugin.plugin_name, plugin.plugin_version, plugin.plugin_namespace)
        found.append(
            Layer(layer.name, identity, layer.num_inputs, layer.num_outputs, aliases, fields)
        )
    return tuple(found)


def _value(field: Any) -> Any:
    import tensorrt_rtx as trt

    return field.data.tobytes() if field.type == trt.PluginFieldType.CHAR else field.data.item()


def compile_pair(
    models: dict[str, Any],
    directory: Path,
    arch: str,
    cubins: Mapping[KernelVariant, bytes],
    kv_scales: KvScales | None = None,
) -> Compiled:
    """Compile the step of a pair for an arch, with plugins if there are cubins; FP8 caches have
    scales.
    """
    from trtllm_dflash.builder.optimization_profiles import profiles
    from trtllm_dflash.builder.trt import Compiler

    sizes = {"max_batch_size": 3, "max_seq_len": 64}
    prepared = resolve_models(
        BuildConfig(**models, output_dir=directory, arch=arch, plugins=bool(cubins), **sizes)
    )
    prepared = replace(prepared, kv_scales=kv_scales)
    resolved = prepared.resolved
    model = build_step(
        prepared.target,
        prepared.drafter,
        dtype=resolved.dtype,
        cache_len=resolved.cache_len,
        block_size=resolved.block_size,
        plugins=resolved.plugins,
        kv_scales=kv_scales,
        ring_width=resolved.ring_width,
    )
    kernels = kernel_variants(model)
    log, file = layer_log(), io.BytesIO()
    compiler = Compiler(log, model, cubins)
    log.layers.clear()
    compiler.compile([arch], profiles(prepared.io, resolved), file, lambda *_: None)
    network, engine = compiler._network, file.getvalue()
    tensors = (network.get_input(index) for index in range(network.num_inputs))
    inputs = {tensor.name: tensor.dtype.name for tensor in tensors}
    present = all(cubins[key] in engine for key in kernels)
    return Compiled(inputs, plugin_layers(network), kernels, present, frozenset(log.layers))


@cache
def layer_log() -> Any:
    """Return a log that keeps the layers of the engines; one, since TensorRT talks to the first
    that a process gives it.
    """
    from trtllm_dflash.builder.trt_callbacks import BuilderLog

    class LayerLog(BuilderLog):
        def __init__(self) -> None:
            super().__init__()
            self.layers: set[tuple[str, str]] = set()

        def log(self, severity: Any, message: str) -> None:
            super().log(severity, message)
            self.layers.update(_ENGINE_LAYER.findall(message))

    return LayerLog()


def op_model(
    name: str,
    *,
    shapes: Mapping[str, Shape] | None = None,
    dtypes: Mapping[str, str] | None = None,
    **numbers: float,
) -> ir.Model:
    """Return a graph of one plugin node; `shapes` and `dtypes` of inputs by name where they are not
    the declared ones.
    """
    spec, g = OPS[name], GraphBuilder()
    required = [
        tensor for tensor in spec.inputs if not tensor.optional or tensor.name in (shapes or {})
    ]
    inputs = []
    for tensor in required:
        declared = tuple(map(_size, tensor.axes))
        dtype = (dtypes or {}).get(tensor.name, spec.kernel.element_type(tensor.dtype, {}))
        shape = ir.Shape((shapes or {}).get(tensor.name, declared))
        inputs.append(
            ir.Value(name=tensor.name, shape=shape, type=ir.TensorType(DTYPES[dtype]))
        )
    outputs = spec(g, *inputs, **numbers)
    for output, tensor in zip(outputs, spec.outputs, strict=True):
        output.name = tensor.name
        dtype = (dtypes or {}).get(
            tensor.aliases or "", spec.kernel.element_type(tensor.dtype, {})
        )
        output.type = ir.TensorType(DTYPES[dtype])
    graph = ir.Graph(
        inputs, outputs, nodes=g.nodes, opset_imports={"": OPSET, OPS_DOMAIN: 1}, name=name
    )
    model = ir.Model(graph, ir_version=11)
    lower_to_plugins(model)
    return model


def _size(axis: str) -> int:
    """Return the size of an axis as it is declared: a number, a symbol or a sum of symbols."""
    return int(axis) if axis.isdecimal() else sum(SIZES[symbol] for symbol in axis.split("+"))


def refusal(
    name: str,
    changes: Mapping[str, Any],
    cubins: Mapping[KernelVariant, bytes],
    profile: Mapping[str, tuple[tuple[int, ...], ...]],
    left_out: str = "",
) -> str:
    """Return what the build of such a graph dies of, in words; "" if it does not.

    `left_out`: an attribute of the node.
    """
    from trtllm_dflash.builder.trt import Compiler
    from trtllm_dflash.builder.trt_callbacks import BuilderLog

    model = op_model(name, **changes)
    if left_out:
        next(iter(model.graph)).attributes.pop(left_out)
    try:
        Compiler(BuilderLog(), model, cubins).compile(
            ["sm120"], [profile], io.BytesIO(), lambda *_: None
        )
    except DFlashError as error:
        return f"{type(error).__name__}: {error}"
    return ""
