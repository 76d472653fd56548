"""What experts are in each kind of engine's graph: numbers, codes for the compiler, codes for our
plugin.
"""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from tests.fixtures.quantized import dequantize_weight, quantized_copy, read_tensors
from tests.fixtures.tiny_moe import tiny_gpt_oss, tiny_qwen3_moe
from tests.graph.test_quantized_linear import _ancestors, _self_contained
from trtllm_dflash.checkpoint.loader import load_target
from trtllm_dflash.checkpoint.mxfp4 import dequantized_experts
from trtllm_dflash.graph.kernel_specs import KernelVariant
from trtllm_dflash.graph.ops import MOE
from trtllm_dflash.graph.plugin_nodes import kernel_variants
from trtllm_dflash.graph.step import build_step

KINDS = ("gate_up_proj", "down_proj")
PLACES = (2, 4)  # of both weights among the operator's inputs
LAYER = "model.layers.1.mlp"
EXPERTS = f"{LAYER}.experts"
HEADS = {"head_dim": 64}  # for which there are kernels


def _step(directory: Path, **options: object) -> ir.Model:
    return build_step(
        load_target(directory),
        None,
        cache_len=64,
        block_size=1,
        **{"dtype": "bfloat16", **options},
    )


def _node(model: ir.Model) -> ir.Node:
    return [node for node in model.graph if node.op_type == MOE.name][1]


def _evaluated(model: ir.Model, value: ir.Value) -> np.ndarray:
    """Return a value that depends on initializers alone, in float32, by ONNX's own reference."""
    from onnx.reference import ReferenceEvaluator

    used = _ancestors(value)
    value.type = ir.TensorType(ir.DataType.BFLOAT16)
    read = {source.name for node in used for source in node.inputs if source is not None} | {
        value.name
    }
    initializers = [made for made in model.graph.initializers.values() if made.name in read]
    nodes = [node for node in model.graph if node in used]
    model.graph.outputs.clear()
    model.graph.remove(list(model.graph))
    model.graph.extend(nodes)
    model.graph.outputs.append(value)
    model.graph.inputs.clear()
    for name in set(model.graph.initializers) - {made.name for made in initializers}:
        del model.graph.initializers[name]
    model.functions.clear()
    return (
        ReferenceEvaluator(ir.to_proto(_self_contained(model)))
        .run(None, {})[0]
        .astype(np.float32)
    )


@pytest.fixture(scope="module")
def gpt_oss(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gpt_oss(tmp_path_factory.mktemp("oss") / "target", dtype="BF16", sizes=HEADS)


@pytest.fixture(scope="module")
def nvfp4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a Qwen3-MoE whose experts are NVFP4, gate and up with one global scale, as ModelOpt
    exports them.
    """
    root = tmp_path_factory.mktemp("nvfp4")
    sizes = {**HEADS, "hidden": 64, "expert_size": 96}
    source = tiny_qwen3_moe(root / "source", dtype="BF16", sizes=sizes)
    experts = [name for name in load_target(source).tensors if ".experts." in name]
    modules = {name.removesuffix(".weight"): "nvfp4" for name in experts}
    target = quantized_copy(source, root / "target", modules=modules)
    share_scales(target)
    return target


def share_scales(target: Path) -> None:
    """Overwrite every up_proj's global scale with its gate_proj's; its numbers are others then."""
    path = target / "model.safetensors"
    tensors, data = load_target(target).tensors, bytearray(path.read_bytes())
    for name, info in tensors.items():
        if name.endswith("up_proj.weight_scale_2"):
            data[info.offset : info.offset + 4] = (
                tensors[name.replace("up_proj", "gate_proj")].array().tobytes()
            )
    path.write_bytes(data)


def _numbers_of(directory: Path, kind: str) -> np.ndarray:
    """Return the numbers [experts, out, in] of a layer that is stored as linears, by the tables of
    tests/fixtures/quantized.py.
    """
    stored = read_tensors(directory / "model.safetensors")
    parts = ("gate_proj", "up_proj") if kind == "gate_up_proj" else (kind,)

    def linear(name: str) -> np.ndarray:
        tensors = {
            key.removeprefix(f"{name}."): array
            for key, array in stored.items()
            if key.startswith(f"{name}.")
        }
        return (
            dequantize_weight(tensors)
            if "weight_scale" in tensors
            else tensors["weight"].astype(np.float32)
        )

    return np.stack(
        [np.concatenate([linear(f"{EXPERTS}.{j}.{part}") for part in parts]) for j in range(7)]
    )


@pytest.mark.parametrize("options", [{"dtype": "float32"}, {}], ids=["cpu", "no fp4"])
def test_numbers(options: dict[str, str], gpt_oss: Path, nvfp4: Path) -> None:
    """Of the step's type, made when they are read."""
    tensors = load_target(gpt_oss).tensors
    for directory in (gpt_oss, nvfp4):
        node = _node(_step(directory, **options))
        assert len(node.inputs) == 6
        for place, kind in zip(PLACES, KINDS, strict=True):
            made = node.inputs[place].const_value
            assert isinstance(made, ir.LazyTensor)
            want = (
                dequantized_experts(tensors, f"{EXPERTS}.{kind}")
                if directory == gpt_oss
                else _numbers_of(nvfp4, kind)
            )
            want = want if options else want.astype(ml_dtypes.bfloat16)
            assert made.shape == want.shape
            np.testing.assert_array_equal(made.numpy(), want)


@pytest.mark.parametrize(("place", "kind"), list(zip(PLACES, KINDS, strict=True)))
def test_codes_for_a_compiler_that_has_fp4(
    place: int, kind: str, gpt_oss: Path, nvfp4: Path
) -> None:
    """By ONNX's own meaning of the operators they are the checkpoint's numbers; gpt-oss's codes are
    not copied.
    """
    model = _step(gpt_oss, fp4=True)
    codes = model.graph.initializers[f"target.{EXPERTS}.{kind}_blocks"].const_value
    assert isinstance(codes, ir.ExternalTensor)
    assert codes.dtype == ir.DataType.FLOAT4E2M1
    want = dequantized_experts(load_target(gpt_oss).tensors, f"{EXPERTS}.{kind}")
    np.testing.assert_array_equal(_evaluated(model, _node(model).inputs[place]), want)

    model = _step(nvfp4, fp4=True)
    want = _numbers_of(nvfp4, kind).astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(_evaluated(model, _node(model).inputs[place]), want)


def test_codes_for_our_plugin_are_the_files_bytes(gpt_oss: Path) -> None:
    """MXFP4 as int32, four bytes each, where they are in the file."""
    model, tensors = _step(gpt_oss, plugins=True), load_target(gpt_oss).tensors
    node = _node(model)
    assert node.attributes["weight_format"].as_int() == 1
    shapes = {2: (5, 192, 8), 6: (5, 96), 4: (5, 64, 12), 7: (5, 48)}
    names = {
        2: "gate_up_proj_blocks",
        6: "gate_up_proj_scales",
        4: "down_proj_blocks",
        7: "down_proj_scales",
    }
    assert len(node.inputs) == 8
    for place, name in names.items():
        tensor, info = node.inputs[place].const_value, tensors[f"{EXPERTS}.{name}"]
        assert isinstance(tensor, ir.ExternalTensor)
        assert (tensor.dtype, tensor.shape) == (ir.DataType.INT32, shapes[place])
        assert (Path(tensor.path), tensor.offset, tensor.length) == (
            info.path,
            info.offset,
            info.nbytes,
        )
    assert KernelVariant("moe", (("weight_format", 1),)) in kernel_variants(model)


def test_nvfp4_for_our_plugin_is_stacked(nvfp4: Path) -> None:
    """Bytes of all experts below each other, gates above ups, and one global scale for each
    expert.
    """
    node, stored = _node(_step(nvfp4, plugins=True)), read_tensors(nvfp4 / "model.safetensors")
    assert node.attributes["weight_format"].as_int() == 2
    assert [value.shape for value in (node.inputs[place] for place in (2, 4, 6, 7, 8, 9))] == [
        (7, 192, 8),
        (7, 64, 12),
        (7, 192),
        (7, 96),
        (7,),
        (7,),
    ]
    gate_up, up_scale, down_scale, scale_2 = (
        node.inputs[place].const_value.numpy() for place in (2, 6, 7, 8)
    )
    expert, half = f"{EXPERTS}.5", slice(96, 192)
    assert gate_up[5, half].tobytes() == stored[f"{expert}.up_proj.weight"].tobytes()
    assert gate_up[5, :96].tobytes() == stored[f"{expert}.gate_proj.weight"].tobytes()
    assert up_scale[5, half].tobytes() == stored[f"{expert}.up_proj.weight_scale"].tobytes()
    assert down_scale[5].tobytes() == stored[f"{expert}.down_proj.weight_scale"].tobytes()
    assert scale_2[5] == stored[f"{expert}.gate_proj.weight_scale_2"]
    assert (
        node.inputs[9].const_value.numpy()[6] == stored[f"{EXPERTS}.6.down_proj.weight_scale_2"]
    )


def test_unquantized_experts_of_a_plugin_are_numbers(tmp_path: Path) -> None:
    for make in (
        lambda at: tiny_gpt_oss(at, mxfp4=False, dtype="BF16", sizes=HEADS),
        tiny_qwen3_moe,
    ):
        target = make(tmp_path / str(make))
        node = _node(
            build_step(load_target(target), None, dtype="float32", cache_len=64, block_size=1)
        )
        assert node.inputs[2].const_value.dtype == ir.DataType.FLOAT
    node = _node(
        _step(tiny_qwen3_moe(tmp_path / "qwen", dtype="BF16", sizes=HEADS), plugins=True)
    )
    assert (len(node.inputs), node.attributes["weight_format"].as_int()) == (6, 0)
    np.testing.assert_array_equal(
        node.inputs[2].const_value.numpy(), _numbers_of(tmp_path / "qwen", "gate_up_proj")
    )
    assert not node.inputs[3].const_value.numpy().any()


def test_one_initializer_of_zeros_for_all_layers(nvfp4: Path) -> None:
    counts = Counter(
        node.inputs[3].name for node in _step(nvfp4).graph if node.op_type == MOE.name
    )
    assert list(counts.values()) == [3]


def test_numbers_where_fp4_cannot_have_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Exponents too far apart, in one of a layer's two weights: both become numbers, and a warning
    says so.
    """
    directory = tiny_gpt_oss(tmp_path / "target", dtype="BF16", sizes=HEADS)
    info = load_target(directory).tensors[f"{EXPERTS}.down_proj_scales"]
    data = bytearray((directory / "model.safetensors").read_bytes())
    data[info.offset + 7] -= 40
    (directory / "model.safetensors").write_bytes(data)
    with caplog.at_level(logging.WARNING):
        model = _step(directory, fp4=True)
    assert f"{EXPERTS}.down_proj: its exponents are too far apart" in caplog.text
    assert all(
        isinstance(_node(model).inputs[place].const_value, ir.LazyTensor) for place in PLACES
    )
    others = [
        node for node in model.graph if node.op_type == MOE.name and node is not _node(model)
    ]
    assert all(node.inputs[place].producer() is not None for node in others for place in PLACES)
    assert _node(_step(directory, plugins=True)).attributes["weight_format"].as_int() == 1


@pytest.mark.parametrize("options", [{"fp4": True}, {"plugins": True}], ids=str)
def test_numbers_where_gate_and_up_have_different_scales(
    options: dict[str, bool], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = tiny_qwen3_moe(
        tmp_path / "source", dtype="BF16", sizes={**HEADS, "hidden": 64, "expert_size": 96}
    )
    experts = [
        name.removesuffix(".weight")
        for name in load_target(source).tensors
        if ".experts." in name
    ]
    target = quantized_copy(
        source, tmp_path / "target", modules=dict.fromkeys(experts, "w4a16_nvfp4")
    )
    with caplog.at_level(logging.WARNING):
        node = _node(_step(target, **options))
    assert (
        f"{EXPERTS}.gate_up_proj: gate and up of expert 0 have different weight_scale_2"
        in caplog.text
    )
    want = _numbers_of(target, "gate_up_proj").astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(node.inputs[2].const_value.numpy(), want)
