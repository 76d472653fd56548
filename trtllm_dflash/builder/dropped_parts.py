"""Finds parts of the step graph that TensorRT's parser has dropped.

The parser does not report an operator's input that it ignores. The builder mentions inputs of the
whole engine only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from trtllm_dflash.trt.loader import import_tensorrt

if TYPE_CHECKING:
    import tensorrt_rtx as trt
else:
    trt = import_tensorrt()

# Layers that leave an output unused by design: ArgMax becomes a TopK whose values have no reader.
_HALF_USED = (trt.LayerType.TOPK,)
# A function's values have their names once for each node that calls it: the parser adds numbers.
_NUMBER_ADDED = re.compile(r"_\d+$")


def dropped_parts(network: Any, unused: Collection[str]) -> list[str]:
    """Return the inputs and results of a network that no layer reads.

    Names in `unused` are left out, since the graph itself does not use them.
    """
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    read = set(_names(network.num_outputs, network.get_output))
    for layer in layers:
        read.update(_names(layer.num_inputs, layer.get_input))
    inputs = _names(network.num_inputs, network.get_input)
    found = [f"input {name}" for name in inputs if name not in read]
    for layer in layers:
        if layer.type in _HALF_USED:
            continue
        results = _names(layer.num_outputs, layer.get_output)
        dropped = [name for name in results if name not in read and not _is_in(unused, name)]
        found += [f"result {name} of {layer.name}" for name in dropped]
    return found


def _is_in(unused: Collection[str], name: str) -> bool:
    return name in unused or _NUMBER_ADDED.sub("", name) in unused


def _names(count: int, get: Callable[[int], Any]) -> list[str]:
    """Return the names of the tensors 0 … count-1, without absent optional ones."""
    tensors = map(get, range(count))
    return [tensor.name for tensor in tensors if tensor is not None]


def unused_values(model: ir.Model) -> set[str]:
    """Return the names of values that the model itself leaves unused, such as a loop's counter."""
    names = set()
    for value in _values(model):
        if not value.uses() and not value.is_graph_output():
            names.add(str(value.name))
    return names


def _values(model: ir.Model) -> Iterator[ir.Value]:
    """Yield the results of all nodes, and the inputs of the graphs inside them."""
    scopes: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for scope in scopes:
        for node in scope.all_nodes():
            yield from node.outputs
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.GRAPH:
                    yield from attribute.as_graph().inputs
