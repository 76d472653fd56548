"""Quantized linears in the graph: emulation bit for bit, weights in place, the pattern that
TensorRT fuses.
"""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from tests.fixtures.quantized import (
    dequantize_weight,
    quantized_copy,
    read_tensors,
    round_fp8,
    round_nvfp4,
)
from tests.fixtures.tiny_models import tiny_drafter, tiny_target
from trtllm_dflash.checkpoint.loader import load_drafter, load_target
from trtllm_dflash.graph.builder import OPSET, GraphBuilder
from trtllm_dflash.graph.quantized_linear import (
    EMULATION_DOMAIN,
    TRT_DOMAIN,
    QuantizedLinears,
    emulation_functions,
)
from trtllm_dflash.graph.step import build_step
from trtllm_dflash.graph.weight_source import WeightSource

FORMATS = ("fp8", "nvfp4", "w4a16_nvfp4")
MODULE = "model.layers.0.mlp.down_proj"
ROUND = {"fp8": round_fp8, "nvfp4": round_nvfp4}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a one-layer target in each format."""
    directory = tmp_path_factory.mktemp("quantized")
    source = tiny_target(directory / "source", num_layers=1, dtype="BF16")
    return {name: quantized_copy(source, directory / name, name) for name in FORMATS}


def _activation_model(name: str, scale: float) -> bytes:
    """Return a graph of one emulating function, on x [N, 32]."""
    g = GraphBuilder()
    x = ir.Value(name="x", shape=ir.Shape(["n", 32]), type=ir.TensorType(ir.DataType.FLOAT))
    y = g.emit(
        {"fp8": "RoundToFP8", "nvfp4": "RoundToNVFP4"}[name],
        [x, scale],
        domain=EMULATION_DOMAIN,
    )[0]
    y.name, y.type = "y", ir.TensorType(ir.DataType.FLOAT)
    imports = {"": OPSET, EMULATION_DOMAIN: 1}
    graph = ir.Graph([x], [y], nodes=g.nodes, opset_imports=imports, name="activation")
    model = ir.Model(graph, ir_version=11, functions=emulation_functions(g.nodes))
    return ir.to_proto(model).SerializeToString()


def _activations() -> np.ndarray:
    """Rows [N, 32] of every size: ties, subnormal and overflowing scales, zeros, an outlier, exact
    numbers.
    """
    random = np.random.default_rng(0)
    rows = random.standard_normal((400, 32)) * np.exp(random.uniform(-14, 8, (400, 1)))
    ties = np.array(
        [
            0.25,
            0.75,
            1.25,
            1.75,
            2.5,
            3.5,
            5,
            6,
            -0.25,
            -0.75,
            -1.25,
            -1.75,
            -2.5,
            -3.5,
            -5,
            0.0,
        ]
        * 2
    )
    outlier = np.where(np.arange(32) % 16 == 3, 50.0, 0.01)
    rows = np.concatenate(
        [rows, [ties * 2.0**k for k in range(-8, 9)], [outlier, np.zeros(32), -outlier]]
    )
    return rows.astype(np.float32)


@pytest.mark.parametrize("name", ROUND)
@pytest.mark.parametrize("scale", [2.0**-7, 0.0123, 3e-5, 7.0])
def test_emulation_is_exact_optimized_or_not(name: str, scale: float) -> None:
    """ONNX Runtime at every level of optimization and onnx's reference equal the tables, bit for
    bit.
    """
    import onnxruntime
    from onnx.reference import ReferenceEvaluator

    model, x = _activation_model(name, scale), _activations()
    wanted = ROUND[name](x, scale)
    for level in ("DISABLE_ALL", "ENABLE_BASIC", "ENABLE_EXTENDED", "ENABLE_ALL"):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(
            onnxruntime.GraphOptimizationLevel, f"ORT_{level}"
        )
        session = onnxruntime.InferenceSession(
            model, options, providers=["CPUExecutionProvider"]
        )
        np.testing.assert_array_equal(session.run(None, {"x": x})[0], wanted, err_msg=level)
    np.testing.assert_array_equal(ReferenceEvaluator(model).run(None, {"x": x})[0], wanted)


def test_the_activations_above_reach_every_case() -> None:
    """Saturation, subnormal block scales and blocks that vanish: otherwise equality would prove
    little.
    """
    x = _activations()
    assert (np.abs(x / 0.0123) > 448).any()
    largest = np.abs(x.reshape(-1, 16)).max(-1) / (6 * 0.0123)
    assert (largest > 448).any()
    assert ((largest > 2.0**-10) & (largest < 2.0**-6)).any()
    assert ((largest < 2.0**-10) & (largest > 0)).any()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("rows", [None, np.array([3, 0, 41])])
def test_a_gpu_graphs_weight_dequantizes_to_the_cpu_graphs(
    name: str, rows: np.ndarray | None, checkpoints: dict[str, Path]
) -> None:
    """ONNX's own meaning of the in-place bytes (packing, block order, both scales) is that of the
    tables.
    """
    from onnx.reference import ReferenceEvaluator

    checkpoint = load_target(checkpoints[name])
    g = GraphBuilder()
    weights = WeightSource(
        "target", checkpoint.tensors, ir.DataType.BFLOAT16, checkpoint.formats
    )
    x = ir.Value(name="x", shape=ir.Shape(["n", 80]), type=ir.TensorType(ir.DataType.BFLOAT16))
    _, weight = QuantizedLinears(g, weights, ir.DataType.BFLOAT16).operands(
        x, MODULE, rows, "rows"
    )
    weight = g.cast(weight, ir.DataType.FLOAT)
    weight.name, weight.type = "w", ir.TensorType(ir.DataType.FLOAT)
    used = _ancestors(weight)
    nodes = [node for node in g.nodes if node in used]
    for value in g.initializers.values():
        assert isinstance(
            value.const_value, ir.LazyTensor if rows is not None else ir.ExternalTensor
        )
    graph = ir.Graph(
        [],
        [weight],
        nodes=nodes,
        initializers=list(g.initializers.values()),
        opset_imports={"": OPSET},
        name="weight",
    )
    proto = ir.to_proto(_self_contained(ir.Model(graph, ir_version=11)))
    got = ReferenceEvaluator(proto).run(None, {})[0]

    stored = read_tensors(checkpoints[name] / "model.safetensors")
    wanted = dequantize_weight(
        {key.removeprefix(f"{MODULE}."): t for key, t in stored.items() if MODULE in key}
    )
    wanted = wanted if rows is None else wanted[rows]
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, rtol=2.0**-8)  # rounded to BF16 at the end
    emulated = QuantizedLinears(
        g,
        WeightSource("cpu", checkpoint.tensors, ir.DataType.FLOAT, checkpoint.formats),
        ir.DataType.FLOAT,
    )
    value = emulated.operands(x, MODULE, rows, "rows")[1].const_value
    np.testing.assert_array_equal(value.numpy(), wanted)


def _ancestors(value: ir.Value) -> set[ir.Node]:
    found: set[ir.Node] = set()
    waiting = [value]
    while waiting:
        node = waiting.pop().producer()
        if node is not None and node not in found:
            found.add(node)
            waiting += [source for source in node.inputs if source is not None]
    return found


def _self_contained(model: ir.Model) -> ir.Model:
    """Return the model with its weights inside."""
    for value in model.graph.initializers.values():
        tensor = value.const_value
        assert tensor is not None
        raw = np.frombuffer(tensor.tobytes(), np.uint8)
        shape = ir.Shape([int(size) for size in tensor.shape.numpy()])
        if tensor.dtype == ir.DataType.FLOAT4E2M1:
            value.const_value = ir.PackedTensor(
                raw.reshape(*shape.numpy()[:-1], -1), tensor.dtype, shape=shape
            )
        else:
            value.const_value = ir.Tensor(raw.view(tensor.dtype.numpy()).reshape(shape.numpy()))
    return model


@pytest.mark.parametrize("name", FORMATS)
def test_no_weight_is_copied_for_a_gpu(name: str, checkpoints: dict[str, Path]) -> None:
    model = build_step(
        load_target(checkpoints[name]), None, dtype="bfloat16", cache_len=64, block_size=1
    )
    for value in model.graph.initializers.values():
        is_rotary = "rotary" in str(value.name)
        assert isinstance(value.const_value, ir.Tensor if is_rotary else ir.ExternalTensor), (
            value.name
        )


def test_an_input_of_several_linears_is_rounded_once(tmp_path: Path) -> None:
    """q, k and v have one input: with one scale it is one node, with three it must be three."""
    source = tiny_target(tmp_path / "source", num_layers=1, dtype="BF16")
    quantized_copy(source, tmp_path / "different")
    shared = quantized_copy(source, tmp_path / "shared")
    path = shared / "model.safetensors"
    data = path.read_bytes()
    tensors = read_tensors(path)
    scales = [
        tensors[f"model.layers.0.self_attn.{kind}_proj.input_scale"].tobytes() for kind in "qkv"
    ]
    assert len(set(scales)) == 3
    for scale in scales[1:]:
        assert data.count(scale) == 1
        data = data.replace(scale, scales[0])
    path.write_bytes(data)
    counts = {}
    for directory, dtype in itertools.product(("different", "shared"), ("float32", "bfloat16")):
        model = build_step(
            load_target(tmp_path / directory), None, dtype=dtype, cache_len=64, block_size=1
        )
        counts[directory, dtype] = sum(
            node.domain in (EMULATION_DOMAIN, TRT_DOMAIN) for node in model.graph
        )
    assert counts == {
        ("different", "float32"): 7,
        ("different", "bfloat16"): 7,
        ("shared", "float32"): 5,
        ("shared", "bfloat16"): 5,
    }


def test_operators_of_each_format(checkpoints: dict[str, Path]) -> None:
    found = {}
    for name in FORMATS:
        for dtype in ("float32", "bfloat16"):
            model = build_step(
                load_target(checkpoints[name]), None, dtype=dtype, cache_len=64, block_size=1
            )
            counts = Counter(node.op_type for node in model.graph)
            ours = (
                "RoundToFP8",
                "RoundToNVFP4",
                "QuantizeLinear",
                "DequantizeLinear",
                "TRT_FP4DynamicQuantize",
            )
            found[name, dtype] = {key: counts[key] for key in ours if counts[key]}
            assert (TRT_DOMAIN in model.graph.opset_imports) == (
                "TRT_FP4DynamicQuantize" in counts
            )
    assert found == {
        ("fp8", "float32"): {"RoundToFP8": 7},
        ("fp8", "bfloat16"): {"QuantizeLinear": 7, "DequantizeLinear": 14},
        ("nvfp4", "float32"): {"RoundToNVFP4": 7},
        ("nvfp4", "bfloat16"): {"TRT_FP4DynamicQuantize": 7, "DequantizeLinear": 28},
        ("w4a16_nvfp4", "float32"): {},
        ("w4a16_nvfp4", "bfloat16"): {"DequantizeLinear": 14},
    }


def test_an_unquantized_graph_is_what_it_was(tmp_path: Path) -> None:
    target = tiny_target(tmp_path / "target", num_layers=2)
    drafter = tiny_drafter(tmp_path / "drafter", target, num_layers=1, taps=(0,))
    model = build_step(
        load_target(target), load_drafter(drafter), dtype="float32", cache_len=64, block_size=4
    )
    assert set(model.graph.opset_imports) == {"", "trtllm_dflash"}
    assert {function.domain for function in model.functions.values()} == {"trtllm_dflash"}
