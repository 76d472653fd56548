"""TensorRT-RTX takes the body of DFlashGatedDelta, and copies no state."""

from __future__ import annotations

import io
from typing import Any

import onnx_ir as ir
import pytest

from tests.graph.gated_delta_twin import Sizes
from trtllm_dflash.graph.builder import DTYPES, OPS_DOMAIN, OPSET, GraphBuilder
from trtllm_dflash.graph.ops import GATED_DELTA

trt = pytest.importorskip("tensorrt_rtx")
from trtllm_dflash.builder.trt import Compiler
from trtllm_dflash.builder.trt_callbacks import BuilderLog

LOG = BuilderLog()
ARCHS = ("sm89", "sm120", "sm121")
TINY, REAL = Sizes(), Sizes(16, 48, 128, 128, pending=15)  # Qwen3.5-27B's
FORMS = pytest.mark.parametrize("form", [None, "row_order"], ids=str)


def _shapes(sizes: Sizes) -> dict[str, list[int | str]]:
    gates = 2 * sizes.value_heads
    return {
        "qkv": ["batch", "width", sizes.channels],
        "gates": ["batch", "width", gates],
        "conv_weight": [sizes.channels, 1, sizes.taps],
        "a_log": [sizes.value_heads],
        "dt_bias": [sizes.value_heads],
        "window": ["batch", *sizes.window],
        "state": ["batch", *sizes.state],
        "past_len": ["batch"],
        "state_len": ["batch"],
        "num_known": ["batch"],
        "out": ["batch", "width", sizes.value_heads, sizes.value_dim],
    }


def _model(sizes: Sizes, form: str | None, num_layers: int) -> ir.Model:
    """Return a graph of so many layers that read the same rows, in bfloat16."""
    g, shapes = GraphBuilder(), _shapes(sizes)
    inputs, outputs = {}, []
    of_layer = {"window", "state"}

    def value(name: str, dtype: str, shape: list[int | str]) -> ir.Value:
        made = ir.TensorType(DTYPES["bfloat16" if dtype == "T" else dtype])
        return ir.Value(name=name, shape=ir.Shape(shape), type=made)

    for layer in range(num_layers):
        given = []
        for tensor in GATED_DELTA.inputs:
            name = f"{tensor.name}.{layer}" if tensor.name in of_layer else tensor.name
            if name not in inputs:
                inputs[name] = value(name, tensor.dtype, shapes[tensor.name])
            given.append(inputs[name])
        attributes = {"num_key_heads": sizes.key_heads} | ({form: 1} if form else {})
        for output, tensor in zip(
            GATED_DELTA(g, *given, **attributes), GATED_DELTA.outputs, strict=True
        ):
            like = value(
                f"{tensor.name}.{layer}", tensor.dtype, shapes[tensor.aliases or tensor.name]
            )
            output.name, output.shape, output.type = like.name, like.shape, like.type
            outputs.append(output)
    imports = {"": OPSET, OPS_DOMAIN: 1}
    graph = ir.Graph(
        list(inputs.values()), outputs, nodes=g.nodes, opset_imports=imports, name="layers"
    )
    return ir.Model(graph, ir_version=11, functions=GATED_DELTA.functions(g.nodes))


def _profile(sizes: Sizes, batch: int, width: int) -> dict[str, Any]:
    """Return the least, best and greatest shape of each input that varies."""
    profile = {}
    for name, shape in _shapes(sizes).items():
        if shape[0] == "batch" and name != "out":
            given = f"{name}.0" if name in ("window", "state") else name
            low, high = _sized(shape, 1, 1), _sized(shape, batch, width)
            profile[given] = (low, high, high)
    return profile


def _sized(shape: list[int | str], batch: int, width: int) -> tuple[int, ...]:
    sizes = {"batch": batch, "width": width}
    return tuple(axis if isinstance(axis, int) else sizes[axis] for axis in shape)


@FORMS
def test_windows_and_states_are_updated_in_place(form: str | None) -> None:
    """Of two layers, which call the same function: nothing of it counts as dropped."""
    network = Compiler(LOG, _model(TINY, form, num_layers=2))._network
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    updates = [layer for layer in layers if layer.type == trt.LayerType.KV_CACHE_UPDATE]
    given = {layer.get_input(0).name for layer in updates}
    assert given == {"window.0", "state.0", "window.1", "state.1"}
    written = {layer.get_output(0).name for layer in updates}
    results = [network.get_output(index).name for index in range(network.num_outputs)]
    assert written == {name for name in results if not name.startswith("out.")}


@pytest.mark.slow
@FORMS
@pytest.mark.parametrize("sizes", [TINY, REAL], ids=str)
def test_a_body_compiles_for_every_arch(sizes: Sizes, form: str | None) -> None:
    shapes = [_profile(sizes, 1, 511), _profile(sizes, 3, sizes.pending + 1)]
    file = io.BytesIO()
    Compiler(LOG, _model(sizes, form, 1)).compile(ARCHS, shapes, file, lambda *_: None)
    assert len(file.getvalue()) > 100_000
