"""From bodies to plugins: makes every operator of ours in a step a node that TensorRT's parser
takes for a plugin.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from trtllm_dflash.errors import GraphError
from trtllm_dflash.graph.builder import DTYPES, OPS_DOMAIN
from trtllm_dflash.graph.kernel_specs import KernelVariant
from trtllm_dflash.graph.ops import OPS, OpSpec

PLUGIN_VERSION = "1"
PLUGIN_NAMESPACE = OPS_DOMAIN
# A node's attribute: 1 where its plugin brings all kernels into the engine, for all nodes.
HOLDS_KERNELS = "holds_kernels"


def lower_to_plugins(model: ir.Model) -> None:
    """Turn the nodes of our operators into plugin nodes, in place; without functions a node's name
    finds the plugin.

    Such a node has its plugin's version and namespace, all attributes, and the sizes and types of
    its kernel. It has no input that only a body needs. Unused inputs of the graph are removed.

    Raises:
        GraphError: for a size that there is no kernel for, or that the graph does not fix.
    """
    unused_before = {value.name for value in model.graph.inputs if not value.uses()}
    for node in model.graph:
        if node.domain == OPS_DOMAIN:
            _use_plugin(node, OPS[node.op_type])
    _choose_holder(model)
    model.functions.clear()
    kept = [
        value for value in model.graph.inputs if value.uses() or value.name in unused_before
    ]
    model.graph.inputs[:] = kept


def _choose_holder(model: ir.Model) -> None:
    """Let one node hold the kernels of all: the first that writes into an input, else the first.

    A kernel of 250 kB in every layer is a good part of an engine's code. TensorRT-RTX takes plugins
    that write into no input for parts of its own layers, and stores the fields of these twice.
    """
    nodes = [node for node in model.graph if node.domain == OPS_DOMAIN]
    in_place = [node for node in nodes if _writes_in_place(OPS[node.op_type])]
    holder = next(iter(in_place or nodes), None)
    for node in nodes:
        node.attributes[HOLDS_KERNELS] = ir.AttrInt64(HOLDS_KERNELS, int(node is holder))


def _writes_in_place(spec: OpSpec) -> bool:
    return any(tensor.aliases for tensor in spec.outputs)


def kernel_variants(model: ir.Model) -> dict[KernelVariant, int]:
    """Return the kernels that a model's plugin nodes need, and how many nodes need each.

    A node that has a body needs none.
    """
    counts: dict[KernelVariant, int] = {}
    bodies = {function.name for function in model.functions.values()}
    for node in model.graph:
        if node.domain == OPS_DOMAIN and node.op_type not in bodies:
            key = _variant_of(node)
            counts[key] = counts.get(key, 0) + 1
    return dict(sorted(counts.items()))


def _variant_of(node: ir.Node) -> KernelVariant:
    sizes = {name: int(a.value) for name, a in node.attributes.items() if _int(a)}
    return kernel_variant(OPS[node.op_type], sizes)


def kernel_variant(spec: OpSpec, sizes: Mapping[str, int]) -> KernelVariant:
    """Return the kernel of an operator with these sizes and types (by name; more may be given).

    What is T is not in the key: operators that have no other types there share its kernel.
    """
    names = [size.name for size in spec.kernel.sizes] + [
        kernel_type.name for kernel_type in spec.kernel.types if sizes.get(kernel_type.name)
    ]
    return KernelVariant(spec.kernel.source, tuple((name, sizes[name]) for name in names))


def _int(attribute: ir.Attr) -> bool:
    return attribute.type == ir.AttributeType.INT


def _use_plugin(node: ir.Node, spec: OpSpec) -> None:
    for attribute in spec.attributes:
        if attribute.body_only:
            node.attributes.pop(attribute.name, None)
        elif attribute.name not in node.attributes:
            node.attributes[attribute.name] = ir.Attr(
                attribute.name, attribute.onnx_type, attribute.default
            )
    for name, number in (_kernel_sizes(node, spec) | _kernel_types(node, spec)).items():
        node.attributes[name] = ir.AttrInt64(name, number)
    for name, text in (
        ("plugin_version", PLUGIN_VERSION),
        ("plugin_namespace", PLUGIN_NAMESPACE),
    ):
        node.attributes[name] = ir.AttrString(name, text)
    kept = [
        value
        for value, tensor in zip(node.inputs, spec.inputs, strict=False)
        if not tensor.body_only
    ]
    for index, value in enumerate(kept):
        node.replace_input_with(index, value)
    node.resize_inputs(len(kept))


def _kernel_sizes(node: ir.Node, spec: OpSpec) -> dict[str, int]:
    """Return the node's sizes that its kernel is compiled for, read from the inputs whose shape the
    graph knows.
    """
    found: dict[str, int] = {}
    for size in spec.kernel.sizes:
        for value, tensor in zip(node.inputs, spec.inputs, strict=False):
            shape = None if value is None else value.shape
            if (
                shape is None
                or len(shape) != len(tensor.axes)
                or size.symbol not in tensor.axes
            ):
                continue
            known = shape[tensor.axes.index(size.symbol)]
            if isinstance(known, int):
                found.setdefault(size.name, known)
        if size.name not in found:
            raise GraphError(
                f"{node.name} ({spec.name}): no input's shape says its {size.name}, which a kernel"
                " needs"
            )
        if found[size.name] not in size.values:
            raise GraphError(
                f"{node.name} ({spec.name}): there is no kernel for {size.name} {found[size.name]},"
                f" only for {', '.join(map(str, size.values))}; build with --no-plugins"
            )
    return found


def _kernel_types(node: ir.Node, spec: OpSpec) -> dict[str, int]:
    """Return the format of each type that the kernel may have instead of T: 0 where no input of
    that symbol has it.
    """
    given = [
        (tensor.dtype, value)
        for value, tensor in zip(node.inputs, spec.inputs, strict=False)
        if value is not None
    ]
    found: dict[str, int] = {}
    for kernel_type in spec.kernel.types:
        said = node.attributes.get(kernel_type.name)
        is_given = any(
            symbol == kernel_type.symbol and value.dtype == DTYPES[kernel_type.dtype]
            for symbol, value in given
        )
        chosen = int(is_given) if said is None else said.as_int()
        found[kernel_type.name] = chosen
        if chosen not in (0, *kernel_type.formats):
            raise GraphError(
                f"{node.name} ({spec.name}): there is no kernel for {kernel_type.name}"
                f" {chosen}, only for 0, {', '.join(map(str, kernel_type.formats))}"
            )
    return found
