"""The layers of the graph that ONNX Runtime's kernels belong to, from the kernels' names.

A kernel of a node in the graph has the node's scope in its name. Bodies of functions are inlined,
and their kernels' names say only which call of which function they are of.
Calls of the drafter's attention end in the order of the layers, so their order gives the layers.
Experts belong to the layer of the last kernel before them with a scope in its name. Behind them the
norm of the next layer may be the first to read their result. Other calls belong where their result
is used: to the layer of the next such kernel. So do kernels that ONNX Runtime's optimizer inserted.
Linear attention writes states at any time after its loop, so it is the loop that counts.
"""

from __future__ import annotations

import re
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
_DRAFT_ATTENTION, _EXPERTS = "DFlashDraftAttention", "DFlashMoE"
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
    first_kernels: dict[InlinedCall, int] = {}
    last_kernels: dict[InlinedCall, int] = {}
    loops: dict[InlinedCall, int] = {}
    for index, (name, call) in enumerate(zip(names, calls, strict=True)):
        if call is not None:
            first_kernels.setdefault(call, index)
            last_kernels[call] = index
            if _LOOP.search(name):
                loops[call] = index
    positions = last_kernels | loops
    num_drafting = 0
    layers = {}
    for call in sorted(positions, key=positions.__getitem__):
        if call.function == _DRAFT_ATTENTION:
            layer = f"drafter/layers.{num_drafting}"
            num_drafting += 1
        elif call.function in _SINGLE:
            layer = _SINGLE[call.function]
        elif call.function == _EXPERTS:
            layer = _layer_before(names, first_kernels[call])
        else:
            layer = by_scope[positions[call]]
        layers[call.name] = layer
    return layers


def _layer_before(names: Sequence[str], index: int) -> str:
    """Return the layer of the last kernel before one that has a layer in its name, or ""."""
    for name in reversed(names[:index]):
        if inlined_call(name) is None and name.startswith("/"):
            layer = layer_in_scope(name.removesuffix(KERNEL_SUFFIX))
            if layer:
                return layer
    return ""
