"""The layers of the graph that ONNX Runtime's kernels belong to, from the kernels' names.

A kernel of a node in the graph has the node's scope in its name. Bodies of functions are inlined,
and their kernels' names say only which call of which function they are of.
Calls of attention end in the order of the layers, so their order gives the layers. Those of linear
attention write states at any time after their loops, so it is the loops that count. Other functions
are experts, which a layer may lack, and roundings, of which it may have several. A call of these
belongs where its result is used: to the layer of the next kernel with a scope in its name.
The same holds for kernels that ONNX Runtime's optimizer inserted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from trtllm_dflash.profile.result import LayerTime

# Scope of the graph -> part of the step.
PARTS = {
    "target": "verify",
    "adjust": "accept",
    "accept": "accept",
    "drafter": "draft",
    "lookup": "draft",
}
KERNEL_SUFFIX = "_kernel_time"
_INLINED = re.compile(r"_inlfunc_(?P<call>(?P<function>[A-Za-z0-9]+?)(?:_token_\d+)?)_/")
# Functions of which each layer of a scope has one call.
_ATTENTION = {
    "DFlashVerifyAttention": "target",
    "DFlashGatedDelta": "target",
    "DFlashDraftAttention": "drafter",
}
# Functions with one call in the graph, and the layer that it is.
_SINGLE = {"DFlashAdjust": "adjust", "DFlashAccept": "accept", "DFlashLookup": "lookup"}
_LOOP = re.compile(r"_/Loop(_\d+)?_kernel_time$")


def layers_of(names: Sequence[str]) -> list[str]:
    """Return the layer of each kernel of a run, from their names in the order in which they ran.

    Layers are "target/layers.0", "target/lm_head", "accept", …; "" is no layer.
    """
    calls = [inlined_call(name) for name in names]
    by_scope = _layers_by_scope(names, calls)
    by_call = _layers_by_call(names, calls, by_scope)
    layers = []
    for call, layer in zip(calls, by_scope, strict=True):
        if call is not None:
            layer = by_call[call.name]
        layers.append(layer)
    return layers


def graph_order(layer: str) -> tuple[int, str, int]:
    """Return a key that sorts layers by part, and within it by number."""
    scope, _, inner = layer.partition("/")
    part = list(PARTS).index(scope)
    name, _, number = inner.rpartition(".")
    if number.isdecimal():
        return part, name, int(number)
    return part, inner, -1


def layer_times(seconds: Mapping[str, float]) -> list[LayerTime]:
    """Return seconds by layer in the graph's order, without those of no layer."""
    times = []
    layers = filter(None, seconds)
    for layer in sorted(layers, key=graph_order):
        scope = layer.split("/")[0]
        times.append(LayerTime(PARTS[scope], layer, seconds[layer]))
    return times


def layer_in_scope(name: str) -> str:
    """Return target/layers.0 for /target/layers.0/mlp/MatMul, the scope alone outside layers."""
    scope, *inner = name.strip("/").split("/")
    if scope not in PARTS:
        return ""
    if scope in _SINGLE.values() or len(inner) < 2:
        return scope
    return f"{scope}/{inner[0]}"


class InlinedCall(NamedTuple):
    """A call of a function whose body is inlined."""

    name: str
    function: str


def inlined_call(name: str) -> InlinedCall | None:
    """Return the call that a kernel is of; None for a kernel outside of functions."""
    found = _INLINED.search(name)
    if found is None:
        return None
    return InlinedCall(found["call"], found["function"])


def _layers_by_scope(names: Sequence[str], calls: Sequence[InlinedCall | None]) -> list[str]:
    """Return the layer in each kernel's name, or else that of the next kernel that has one."""
    layers = []
    following = ""
    for name, call in zip(reversed(names), reversed(calls), strict=True):
        layer = following
        if call is None and name.startswith("/"):
            layer = layer_in_scope(name.removesuffix(KERNEL_SUFFIX))
        following = layer or following
        layers.append(layer)
    layers.reverse()
    return layers


def _layers_by_call(
    names: Sequence[str], calls: Sequence[InlinedCall | None], by_scope: Sequence[str]
) -> dict[str, str]:
    """Return the layer of each call, by the call's name."""
    last_kernels = {}
    loops = {}
    for index, (name, call) in enumerate(zip(names, calls, strict=True)):
        if call is not None:
            last_kernels[call] = index
            if _LOOP.search(name):
                loops[call] = index
    positions = last_kernels | loops
    num_calls: Counter[str] = Counter()
    layers = {}
    for call in sorted(positions, key=positions.__getitem__):
        if call.function in _ATTENTION:
            scope = _ATTENTION[call.function]
            layer = f"{scope}/layers.{num_calls[scope]}"
            num_calls[scope] += 1
        elif call.function in _SINGLE:
            layer = _SINGLE[call.function]
        else:
            layer = by_scope[last_kernels[call]]
        layers[call.name] = layer
    return layers
