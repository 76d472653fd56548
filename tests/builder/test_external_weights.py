"""Moved weights are a valid .safetensors file, and the graph points at exactly their bytes."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from trtllm_dflash.builder.external_weights import move_weights, stored_bytes, weights_of
from trtllm_dflash.checkpoint.safetensors import read_tensor_infos

RANDOM = np.random.default_rng(0)
ARRAYS = {
    "f32": RANDOM.standard_normal((7, 5)).astype(np.float32),
    "bf16": RANDOM.standard_normal((3, 11)).astype(ml_dtypes.bfloat16),
    "norm": RANDOM.standard_normal(13).astype(np.float32),
}


def _model(tensors: dict[str, ir.TensorProtocol]) -> ir.Model:
    values = [ir.Value(name=name, const_value=tensor) for name, tensor in tensors.items()]
    return ir.Model(
        ir.Graph([], [], nodes=[], initializers=values, opset_imports={"": 24}), ir_version=11
    )


def _lazy(name: str) -> ir.LazyTensor:
    tensor = ir.Tensor(ARRAYS[name])
    return ir.LazyTensor(lambda: tensor, tensor.dtype, ir.Shape(ARRAYS[name].shape), name=name)


def test_lazy_tensors_are_written_and_read_back(tmp_path: Path) -> None:
    model, sizes = _model({name: _lazy(name) for name in ARRAYS}), list[int]()
    path = tmp_path / "rank0.safetensors"
    assert move_weights(weights_of(model), path, wrote=sizes.append) == path.stat().st_size
    assert sizes == [array.nbytes for array in ARRAYS.values()]
    infos = read_tensor_infos(
        path
    )  # this package's own reader refuses gaps, overlaps and wrong sizes
    for name, array in ARRAYS.items():
        moved = model.graph.initializers[name].const_value
        assert isinstance(moved, ir.ExternalTensor)
        assert moved.location == "rank0.safetensors"
        assert moved.offset == infos[name].offset
        np.testing.assert_array_equal(moved.numpy(), array)
        np.testing.assert_array_equal(infos[name].array(), array)


def test_the_file_is_what_the_safetensors_package_reads(tmp_path: Path) -> None:
    numpy_reader = pytest.importorskip("safetensors.numpy")
    model = _model({name: _lazy(name) for name in ARRAYS})
    move_weights(weights_of(model), tmp_path / "w.safetensors")
    loaded = numpy_reader.load_file(tmp_path / "w.safetensors")
    for name in ("f32", "norm"):
        np.testing.assert_array_equal(loaded[name], ARRAYS[name])


def test_external_tensors_can_be_moved_again(tmp_path: Path) -> None:
    model = _model({"f32": _lazy("f32")})
    move_weights(weights_of(model), tmp_path / "a.safetensors")
    (tmp_path / "b").mkdir()
    move_weights(weights_of(model), tmp_path / "b" / "b.safetensors")
    (tmp_path / "a.safetensors").unlink()
    moved = model.graph.initializers["f32"].const_value
    assert moved is not None
    np.testing.assert_array_equal(moved.numpy(), ARRAYS["f32"])


def test_codes_of_quantized_weights_keep_their_bytes(tmp_path: Path) -> None:
    packed = RANDOM.integers(0, 256, (6, 16), dtype=np.uint8)
    tensors: dict[str, ir.TensorProtocol] = {
        "fp4": ir.PackedTensor(
            packed.reshape(-1), ir.DataType.FLOAT4E2M1, shape=ir.Shape([6, 32])
        ),
        "fp8": ir.Tensor((packed & 0x7E).view(ml_dtypes.float8_e4m3fn)),
    }
    model = _model(
        {
            name: ir.LazyTensor(
                lambda tensor=tensor: tensor, tensor.dtype, tensor.shape, name=name
            )
            for name, tensor in tensors.items()
        }
    )
    move_weights(weights_of(model), tmp_path / "w.safetensors")
    infos = read_tensor_infos(tmp_path / "w.safetensors")
    assert [(info.dtype, info.shape, info.nbytes) for info in infos.values()] == [
        ("F4", (6, 32), 96), ("F8_E4M3", (6, 16), 96),
    ]  # fmt: skip
    for name, wanted in (("fp4", packed), ("fp8", packed & 0x7E)):
        moved = model.graph.initializers[name].const_value
        assert moved is not None
        np.testing.assert_array_equal(stored_bytes(moved), wanted.reshape(-1))
        np.testing.assert_array_equal(moved.numpy(), tensors[name].numpy())


def test_small_constants_stay_in_the_graph_and_large_ones_do_not() -> None:
    small, large = ir.tensor(np.zeros(8, np.int64)), ir.tensor(np.zeros(1000, np.int64))
    model = _model({"small": small, "large": large, "lazy": _lazy("norm")})
    assert [value.name for value in weights_of(model)] == ["large", "lazy"]


def test_only_one_tensor_is_in_memory_at_a_time(tmp_path: Path) -> None:
    alive: list[int] = []
    peak = 0

    class Counted(np.ndarray):
        def __del__(self) -> None:
            alive.pop()

    def make() -> ir.Tensor:
        nonlocal peak
        alive.append(1)
        peak = max(peak, len(alive))
        return ir.Tensor(np.ones((4, 4), np.float32).view(Counted))

    lazies = {
        f"w{index}": ir.LazyTensor(make, ir.DataType.FLOAT, ir.Shape((4, 4)))
        for index in range(5)
    }
    move_weights(weights_of(_model(dict(lazies))), tmp_path / "w.safetensors")
    assert peak <= 2  # the one being written, and the last one until it is let go
