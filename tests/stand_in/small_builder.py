"""The builder of the stand-in engine, in the place of `trtllm_dflash.builder.trt`.

It takes the real step graph with plugin nodes, compiles the real cubins and makes the real plugins.
An engine file holds the graph and what each plugin serializes of itself.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import onnx_ir as ir
import tensorrt_rtx as trt

from tests.fixtures.engines import build_here
from tests.plugins.cubins import compiled
from trtllm_dflash.builder.external_weights import weights_of
from trtllm_dflash.builder.job import BuildJob, BuildResult
from trtllm_dflash.builder.optimization_profiles import Profile, profiles
from trtllm_dflash.engine_dir.files import ENGINE_FILE
from trtllm_dflash.engine_dir.io_tensors import IoTensor
from trtllm_dflash.graph.builder import OPS_DOMAIN
from trtllm_dflash.graph.kernel_specs import KernelVariant
from trtllm_dflash.graph.ops import OPS
from trtllm_dflash.graph.plugin_nodes import HOLDS_KERNELS, kernel_variants
from trtllm_dflash.hardware.backends import BACKENDS
from trtllm_dflash.options.build import BuildConfig
from trtllm_dflash.trt_plugins import plugin
from trtllm_dflash.trt_plugins.fields import field_types, number_field

Field = tuple[str, np.ndarray, int]  # name, data, number of its type


@dataclass(frozen=True)
class SmallPlan:
    """What an engine file holds: the graph, and the serialized fields of its plugins by node."""

    graph: bytes
    plugins: Mapping[str, list[Field]]
    io: tuple[IoTensor, ...]
    profiles: tuple[Profile, ...]


def build_for_stand_in(config: BuildConfig) -> Path:
    """Build an engine for the stand-in driver's GPU, with all else as in a real directory."""
    ours = replace(BACKENDS["tensorrt_rtx"], builder=__name__)
    with mock.patch.dict(BACKENDS, {ours.name: ours}):
        return build_here(config)


def build(make_model: Callable[[], ir.Model], job: BuildJob) -> BuildResult:
    """Write the engine file of a step graph; the signature is that of all builders."""
    model = make_model()
    for value in weights_of(model):
        assert value.const_value is not None
        value.const_value = ir.Tensor(value.const_value.numpy(), name=value.name)
    graph = ir.to_proto(model)
    variants = kernel_variants(model)
    kernels = {variant: compiled(variant, job.resolved.gpu_arch) for variant in variants}
    plugins = _serialized_plugins(graph, {key: cubin.code for key, cubin in kernels.items()})
    plan = SmallPlan(
        graph.SerializeToString(), plugins, tuple(job.io), profiles(job.io, job.resolved)
    )
    (job.directory / ENGINE_FILE).write_bytes(pickle.dumps(plan))
    facts = [cubin.facts() for cubin in kernels.values()]
    return BuildResult(plan.graph, facts, {"tensorrt_rtx": trt.__version__})


def _serialized_plugins(
    graph: onnx.ModelProto, cubins: Mapping[KernelVariant, bytes]
) -> dict[str, list[Field]]:
    """Return what the plugins of all nodes serialize, made by our creators as a parser does it."""
    plugin.register(cubins)
    made = {}
    for node in graph.graph.node:
        if node.domain == OPS_DOMAIN:
            creator = plugin._creators[node.op_type]
            fields = _node_fields(node)  # a collection does not keep them
            collection = trt.PluginFieldCollection(fields)
            built = creator.create_plugin(node.name, collection, trt.TensorRTPhase.BUILD)
            made[node.name] = [
                (field.name, np.asarray(field.data).copy(), int(field.type))
                for field in built.get_fields_to_serialize()
            ]
    return made


def _node_fields(node: onnx.NodeProto) -> list[Any]:
    given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    fields = [
        number_field(name, python_type(given[name]))
        for name, (python_type, _) in field_types(OPS[node.op_type]).items()
    ]
    return [*fields, number_field(HOLDS_KERNELS, int(given[HOLDS_KERNELS]))]
