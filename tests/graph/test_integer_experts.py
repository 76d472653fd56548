"""Experts with integer weights in ONNX Runtime: what they compute, and equal row by row.

A token's bits may depend on nothing but the token: not on the others, and not on the threads.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

onnxruntime = pytest.importorskip("onnxruntime")

from trtllm_dflash.checkpoint.block_integers import BITS, BLOCK_LENGTH, BlockIntegers
from trtllm_dflash.checkpoint.safetensors import read_tensor_infos
from trtllm_dflash.checkpoint.writer import write_arrays
from trtllm_dflash.graph.builder import OPSET, GraphBuilder
from trtllm_dflash.graph.layers import LayerBuilder
from trtllm_dflash.graph.moe_layer import Experts, ExpertStorage
from trtllm_dflash.graph.weight_only import RUNTIME_DOMAIN
from trtllm_dflash.graph.weight_source import WeightSource
from trtllm_dflash.models.moe import MoEConfig

HIDDEN, INNER = 64, 96
QWEN = MoEConfig(num_experts=7, top_k=4, intermediate_size=INNER, normalize=True, fused=False)
CONFIGS = {
    "qwen3_moe": QWEN,
    "shares of all": replace(QWEN, normalize=False),
    "one expert": replace(QWEN, top_k=1),
    "ten experts": replace(QWEN, num_experts=16, top_k=10),
    "gpt_oss": replace(QWEN, fused=True, limit=1.5, alpha=1.702, shift=1.0),
}
WIDTHS = (1, 2, 3, 4, 5, 8, 16, 33, 128)
NUM_ROWS = 150
_FLOAT = ir.TensorType(ir.DataType.FLOAT)


@dataclass(frozen=True)
class _Layer:
    """The experts of one layer: router [E, H], gates, ups [E, I, H], downs [E, H, I], biases."""

    config: MoEConfig
    router: np.ndarray
    gates: np.ndarray
    ups: np.ndarray
    downs: np.ndarray
    gate_bias: np.ndarray
    up_bias: np.ndarray
    down_bias: np.ndarray

    @classmethod
    def of_random(cls, config: MoEConfig) -> _Layer:
        rng = np.random.default_rng(3)
        shapes = (
            [(HIDDEN,)] + [(INNER, HIDDEN)] * 2 + [(HIDDEN, INNER)]
            + [(INNER,)] * 2 + [(HIDDEN,)]
        )  # fmt: skip
        parts = [rng.standard_normal((config.num_experts, *shape)) / 4 for shape in shapes]
        if not config.fused:
            parts[-3:] = [np.zeros_like(part) for part in parts[-3:]]
        return cls(config, *(part.astype(np.float32) for part in parts))

    def tensors(self) -> dict[str, np.ndarray]:
        """Return the tensors of a checkpoint."""
        if not self.config.fused:
            tensors = {"mlp.gate.weight": self.router}
            for j in range(self.config.num_experts):
                tensors[f"mlp.experts.{j}.gate_proj.weight"] = self.gates[j]
                tensors[f"mlp.experts.{j}.up_proj.weight"] = self.ups[j]
                tensors[f"mlp.experts.{j}.down_proj.weight"] = self.downs[j]
            return tensors
        both = np.stack([self.gates, self.ups], axis=2)  # gates and ups alternate
        biases = np.stack([self.gate_bias, self.up_bias], axis=2)
        count = self.config.num_experts
        return {
            "mlp.router.weight": self.router,
            "mlp.experts.gate_up_proj": both.reshape(count, -1, HIDDEN).transpose(0, 2, 1),
            "mlp.experts.down_proj": self.downs.transpose(0, 2, 1),
            "mlp.experts.gate_up_proj_bias": biases.reshape(count, -1),
            "mlp.experts.down_proj_bias": self.down_bias,
        }

    def expected(self, x: np.ndarray, bits: int) -> np.ndarray:
        """Compute each row by its own experts, in float64 with what the integers stand for."""
        c = self.config
        logits = x.astype(np.float64) @ self.router.T
        out = np.zeros((len(x), HIDDEN))
        for row, total, of_row in zip(x, out, logits, strict=True):
            experts = np.argsort(-of_row)[: c.top_k]
            known = of_row[experts] if c.normalize else of_row
            shares = np.exp(of_row[experts]) / np.exp(known).sum()
            for expert, share in zip(experts, shares, strict=True):
                total += share * self._expert(expert, row, bits)
        return out

    def _expert(self, expert: int, row: np.ndarray, bits: int) -> np.ndarray:
        c = self.config

        def product(matrices: np.ndarray, x: np.ndarray) -> np.ndarray:
            integers = BlockIntegers.of(matrices[expert], bits)
            return integers.dequantized(len(x)).astype(np.float64) @ _rounded(x)

        gate = product(self.gates, row) + self.gate_bias[expert]
        up = product(self.ups, row) + self.up_bias[expert]
        if c.limit:
            gate, up = np.minimum(gate, c.limit), np.clip(up, -c.limit, c.limit)
        inner = (up + c.shift) * gate / (1 + np.exp(-c.alpha * gate))
        return product(self.downs, inner) + self.down_bias[expert]


def _rounded(x: np.ndarray) -> np.ndarray:
    """Round a row to 8 bits by block, as the products do."""
    blocks = x.reshape(-1, BLOCK_LENGTH)
    step = np.abs(blocks).max(axis=1, keepdims=True) / 127
    return (np.rint(blocks / step) * step).reshape(-1)


def _session(folder: Path, layer: _Layer, precision: str | None, threads: int = 1) -> Any:
    file = folder / "model.safetensors"
    if not file.exists():
        write_arrays(file, {name: ("F32", array) for name, array in layer.tensors().items()})
    g = GraphBuilder()
    source = WeightSource("target", read_tensor_infos(file), ir.DataType.FLOAT)
    m = LayerBuilder(g, source, ir.DataType.FLOAT, 1e-5, weight_only=precision)
    x = ir.Value(name="x", shape=ir.Shape(["N", HIDDEN]), type=_FLOAT)
    y = Experts(m, layer.config, HIDDEN, ExpertStorage.DEQUANTIZED, "mlp")(x)
    y.name, y.type = "y", _FLOAT
    weights = list(g.initializers.values())
    opsets = {"": OPSET, RUNTIME_DOMAIN: 1}
    graph = ir.Graph([x], [y], nodes=g.nodes, initializers=weights, opset_imports=opsets)
    graph.name = "experts"
    for value in weights:
        value.const_value = ir.Tensor(value.const_value.numpy())
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    model = ir.to_proto(ir.Model(graph, ir_version=11)).SerializeToString()
    return onnxruntime.InferenceSession(model, options)


def _rows() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((NUM_ROWS, HIDDEN)).astype(np.float32)


@pytest.mark.parametrize("precision", BITS)
@pytest.mark.parametrize("name", CONFIGS)
def test_they_compute_what_the_integers_stand_for(
    name: str, precision: str, tmp_path: Path
) -> None:
    """Nearly: a number of a row that lies between two codes may be rounded to the other."""
    layer = _Layer.of_random(CONFIGS[name])
    (found,) = _session(tmp_path, layer, precision).run(["y"], {"x": _rows()[:20]})
    expected = layer.expected(_rows()[:20], BITS[precision])
    error = np.abs(found - expected)
    assert np.median(error) < 1e-5 * np.abs(expected).max()
    assert error.max() < 0.02 * np.abs(expected).max()


@pytest.mark.parametrize("precision", BITS)
@pytest.mark.parametrize("name", CONFIGS)
def test_a_token_is_the_same_bits_in_every_width(
    name: str, precision: str, tmp_path: Path
) -> None:
    layer, x = _Layer.of_random(CONFIGS[name]), _rows()
    sessions = [_session(tmp_path, layer, precision, threads) for threads in (1, 2)]
    (whole,) = sessions[0].run(["y"], {"x": x})
    for session in sessions:
        for width in WIDTHS:
            for start in range(0, NUM_ROWS, width):
                rows = slice(start, start + width)
                (found,) = session.run(["y"], {"x": x[rows]})
                np.testing.assert_array_equal(found, whole[rows], f"{width} rows")
