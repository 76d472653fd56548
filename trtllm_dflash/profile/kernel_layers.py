"""The layers of the graph that ONNX Runtime's kernels belong to, from the kernels' names.

A kernel of a node in the graph has the node's scope in its name. Bodies of functions are inlined,
and their kernels' names say only which call of which function they are of.
Calls of attention end in the order of the layers, so their order gives the layers. Other functions
are experts, which a layer may lack, and roundings, of which it may have several. A call of these
belongs where its result is used: to the layer of the next kernel with a scope in its name.
The same holds for kernels that ONNX Runtime's optimizer inserted.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

from trtllm_dflash.profile.result import LayerTime

# Scope of the graph -> part of the step.
PARTS = {"target": "verify", "accept": "accept", "drafter": "draft"}
KERNEL_SUFFIX = "_kernel_time"
_INLINED = re.compile(r"_inlfunc_(?P<call>(?P<function>[A-Za-z0-9]+?)(?:_token_\d+)?)_/")
# Functions with one call in each layer of a scope.
_ATTENTION = {"DFlashVerifyAttention": "target", "DFlashDraftAttention": "drafter"}
_ACCEPT = "DFlashAccept"


def layers_of(names: Sequence[str]) -> list[str]:
    """Return the layer of each kernel of a run, from their names in the order in which they ran.

    Layers are "target/layers.0", "target/lm_head", "accept", …; "" is no layer.
    """
    inlined = [_INLINED.search(name) for name in names]
    by_scope = _layers_by_scope(names, inlined)
    by_call = _layers_by_call(inlined, by_scope)
    layers = []
    for found, layer in zip(inlined, by_scope, strict=True):
        layers.append(by_call[found["call"]] if found else layer)
    return layers


def graph_order(layer: str) -> tuple[int, str, int]:
    """Return a key that sorts layers by part, and within it by number."""
    scope, _, inner = layer.partition("/")
    name, _, number = inner.rpartition(".")
    part = list(PARTS).index(scope) if scope in PARTS else -1
    return (part, name, int(number)) if number.isdecimal() else (part, inner, -1)


def layer_times(seconds: Mapping[str, float]) -> list[LayerTime]:
    """Return seconds by layer in the graph's order, without those of no layer."""
    times = []
    for layer in sorted(filter(None, seconds), key=graph_order):
        part = PARTS[layer.split("/")[0]]
        times.append(LayerTime(part, layer, seconds[layer]))
    return times


def layer_in_scope(name: str) -> str:
    """Return target/layers.0 for /target/layers.0/mlp/MatMul, the scope alone outside layers."""
    scope, *inner = name.strip("/").split("/")
    if scope not in PARTS:
        return ""
    return f"{scope}/{inner[0]}" if len(inner) > 1 and scope != "accept" else scope


def inlined_call(name: str) -> tuple[str, str] | None:
    """Return (call, function) of a kernel from a function's body; None for other kernels."""
    found = _INLINED.search(name)
    return (found["call"], found["function"]) if found else None


def _layers_by_scope(names: Sequence[str], inlined: Sequence[re.Match[str] | None]) -> list[str]:
    """Return the layer in each kernel's name, or else that of the next kernel that has one."""
    layers, following = [], ""
    for name, found in zip(reversed(names), reversed(inlined), strict=True):
        layer = following
        if found is None and name.startswith("/"):
            layer = layer_in_scope(name.removesuffix(KERNEL_SUFFIX))
        following = layer or following
        layers.append(layer)
    return layers[::-1]


def _layers_by_call(
    inlined: Sequence[re.Match[str] | None], by_scope: Sequence[str]
) -> dict[str, str]:
    """Return the layer of each call of a function."""
    last: dict[str, tuple[int, str]] = {}  # call -> its last kernel, and the function
    for index, found in enumerate(inlined):
        if found:
            last[found["call"]] = index, found["function"]
    num_calls: dict[str, int] = defaultdict(int)
    layers = {}
    for call, (index, function) in sorted(last.items(), key=lambda item: item[1]):
        if function in _ATTENTION:
            layers[call] = f"{_ATTENTION[function]}/layers.{num_calls[function]}"
            num_calls[function] += 1
        else:
            layers[call] = "accept" if function == _ACCEPT else by_scope[index]
    return layers
