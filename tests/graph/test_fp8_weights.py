"""FP8 weights in a graph of plugins: a byte a weight, in place, with the checkpoint's numbers."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from tests.fixtures.published import published_copy, published_experts, twin_of
from tests.fixtures.quantized import read_tensors, write_tensors
from tests.fixtures.tiny_models import tiny_target
from trtllm_dflash.checkpoint.formats import Holds
from trtllm_dflash.checkpoint.loader import load_target
from trtllm_dflash.graph.kernel_specs import KernelVariant
from trtllm_dflash.graph.plugin_nodes import kernel_variants
from trtllm_dflash.graph.step import build_step

LINEAR, MOE = "DFlashBlockLinear", "DFlashMoE"
SIZES = {"hidden": 208, "expert_size": 144, "experts": 3, "layers": 1, "head_dim": 64}
HALF_ULP = 2.0**-8  # of a product that was rounded to bfloat16


def _step(directory: Path, **options: object) -> ir.Model:
    return build_step(
        load_target(directory),
        None,
        cache_len=64,
        block_size=1,
        **{"dtype": "bfloat16", "plugins": True, **options},
    )


def _nodes(model: ir.Model, kind: str) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == kind]


def _is_external(value: ir.Value, directory: Path) -> bool:
    """Tell whether an initializer is bytes of the checkpoint's file."""
    tensor = value.const_value
    return isinstance(tensor, ir.ExternalTensor) and Path(tensor.path).parent == directory


def _array(value: ir.Value) -> np.ndarray:
    assert value.const_value is not None
    return value.const_value.numpy()


def _numbers(packed: np.ndarray, scales: np.ndarray, block_rows: int = 128) -> np.ndarray:
    """Return code times scale in float32, of int32 words [out, in/4] and scales of blocks."""
    weight = packed.view(np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    rows, columns = weight.shape
    scales = scales.reshape(-(-rows // block_rows), -1)
    by_row = np.repeat(scales, block_rows, axis=0)[:rows]
    width = columns if block_rows == 1 else 128
    return weight * np.repeat(by_row, width, axis=1)[:, :columns]


@pytest.mark.parametrize("scale_dtype", ["F32", "BF16"])
@pytest.mark.parametrize("name", ["fine_grained", "fp8_block"])
def test_blocks_are_a_plugins(name: str, scale_dtype: str, tmp_path: Path) -> None:
    """Codes in the checkpoint's file, scales too if they are float32; biases are its input."""
    source = tiny_target(tmp_path / "source", "qwen2", num_layers=1, head_dim=64)
    target = published_copy(source, tmp_path / "q", name, scale_dtype=scale_dtype)
    model = _step(target)
    nodes = _nodes(model, LINEAR)
    assert len(nodes) == 7
    assert [len(node.inputs) for node in nodes] == [4, 4, 4, 3, 3, 3, 3]
    assert kernel_variants(model)[KernelVariant("block_linear")] == 7
    wanted = read_tensors(twin_of(target) / "model.safetensors")
    for node in nodes:
        packed, scales = node.inputs[1:3]
        assert packed is not None
        assert scales is not None
        assert _is_external(packed, target)
        assert _is_external(scales, target) == (scale_dtype == "F32")
        module = str(packed.name).removeprefix("target.")
        np.testing.assert_array_equal(_numbers(_array(packed), _array(scales)), wanted[module])


def test_without_plugins_blocks_are_numbers(tmp_path: Path) -> None:
    source = tiny_target(tmp_path / "source", num_layers=1, head_dim=64)
    target = published_copy(source, tmp_path / "q", "fine_grained")
    wanted = read_tensors(twin_of(target) / "model.safetensors")
    for options, room in (
        ({"plugins": False}, HALF_ULP),
        ({"plugins": False, "dtype": "float32"}, 0.0),
    ):
        model = _step(target, **options)
        assert not _nodes(model, LINEAR)
        name = "target.model.layers.0.mlp.up_proj.weight"
        got = _array(model.graph.initializers[name]).astype(np.float32)
        np.testing.assert_allclose(got, wanted[name.removeprefix("target.")], rtol=room)


def test_columns_that_a_thread_cannot_read_are_numbers(tmp_path: Path) -> None:
    """16 codes at once: a weight with 40 columns has them in the engine's type."""
    source = tiny_target(tmp_path / "source", num_layers=1, head_dim=64)
    tensors = read_tensors(source / "model.safetensors")
    for name in ("gate_proj", "up_proj"):
        tensors[f"model.layers.0.mlp.{name}.weight"] = tensors[
            f"model.layers.0.mlp.{name}.weight"
        ][:40]
    down = "model.layers.0.mlp.down_proj.weight"
    tensors[down] = np.ascontiguousarray(tensors[down][:, :40])
    write_tensors(
        source / "model.safetensors", {name: ("F32", array) for name, array in tensors.items()}
    )
    config = json.loads((source / "config.json").read_text()) | {"intermediate_size": 40}
    (source / "config.json").write_text(json.dumps(config))
    target = published_copy(source, tmp_path / "q", "fine_grained")
    nodes = _nodes(_step(target), LINEAR)
    assert len(nodes) == 6
    checkpoint = load_target(target)
    assert not checkpoint.stays_packed(down, Holds.KERNELS)
    assert checkpoint.engine_bytes(down, 2, Holds.KERNELS) == 2 * 48 * 40
    assert checkpoint.engine_bytes(f"{down}_scale", 2, Holds.KERNELS) == 0


@pytest.mark.parametrize("fused", [False, True])
def test_experts_in_blocks_are_packed(fused: bool, tmp_path: Path) -> None:
    """In one tensor they stay where they are; tensors of each become one. Blocks may be partial."""
    sizes = SIZES | {"expert_size": 256} if fused else SIZES
    target = published_experts(tmp_path, "fine_grained", fused=fused, sizes=sizes)
    (node,) = _nodes(_step(target), MOE)
    assert node.attributes["weight_format"].as_int() == 3
    assert node.attributes["block_rows"].as_int() == 128
    _check_experts(node, target, 128)
    for place in (2, 4):
        value = node.inputs[place]
        assert value is not None
        assert _is_external(value, target) == fused


@pytest.mark.parametrize("name", ["fp8_channel", "fp8", "fp8_tensor"])
def test_experts_with_other_scales_are_packed(name: str, tmp_path: Path) -> None:
    """A scale of a tensor is that of each of its rows."""
    target = published_experts(tmp_path, name, fused=False, sizes=SIZES)
    (node,) = _nodes(_step(target), MOE)
    assert node.attributes["block_rows"].as_int() == 1
    _check_experts(node, target, 1)


def _check_experts(node: ir.Node, target: Path, block_rows: int) -> None:
    wanted = read_tensors(twin_of(target) / "model.safetensors")
    for place, parts in ((2, ("gate_proj", "up_proj")), (4, ("down_proj",))):
        weight, scale = node.inputs[place], node.inputs[6 + (place == 4)]
        assert weight is not None
        assert scale is not None
        for expert, (packed, scales) in enumerate(
            zip(_array(weight), _array(scale).view(np.float32), strict=True)
        ):
            halves = zip(
                np.split(packed, len(parts)), np.split(scales, len(parts)), strict=True
            )
            for part, (own, of_own) in zip(parts, halves, strict=True):
                full = f"model.layers.0.mlp.experts.{expert}.{part}.weight"
                got = _numbers(own, of_own, block_rows)
                np.testing.assert_array_equal(got, wanted[full])


@pytest.mark.parametrize("options", [{"plugins": False}, {"plugins": False, "fp4": True}])
def test_experts_without_plugins_are_numbers(
    options: dict[str, bool], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    target = published_experts(tmp_path, "fine_grained", fused=False, sizes=SIZES)
    with caplog.at_level(logging.WARNING):
        (node,) = _nodes(_step(target, **options), MOE)
    assert len(node.inputs) == 6
    assert node.attributes["weight_format"].as_int() == 0
    assert caplog.text == ""


def test_experts_in_two_formats_are_numbers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Gate and up in blocks, down not quantized: the kernel has one format."""
    target = published_experts(tmp_path, "fine_grained", fused=False, sizes=SIZES)
    wanted = read_tensors(twin_of(target) / "model.safetensors")
    stored = {}
    for name, array in read_tensors(target / "model.safetensors").items():
        is_down = ".experts." in name and "down_proj" in name
        if is_down and name.endswith("weight_scale_inv"):
            continue
        dtype = {"float8_e4m3fn": "F8_E4M3", "bfloat16": "BF16"}.get(array.dtype.name, "F32")
        stored[name] = ("F32", wanted[name]) if is_down else (dtype, array)
    write_tensors(target / "model.safetensors", stored)
    config = json.loads((target / "config.json").read_text())
    downs = [f"model.layers.0.mlp.experts.{n}.down_proj" for n in range(3)]
    config["quantization_config"]["modules_to_not_convert"] += downs
    (target / "config.json").write_text(json.dumps(config))
    with caplog.at_level(logging.WARNING):
        (node,) = _nodes(_step(target), MOE)
    assert "gate_up_proj and down_proj are stored in two formats" in caplog.text
    assert node.attributes["weight_format"].as_int() == 0
