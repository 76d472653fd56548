"""Linears of one input are joined where their weights lie together, and compute the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from trtllm_dflash.builder import joined_linears
from trtllm_dflash.builder.external_weights import move_weights, stored_bytes
from trtllm_dflash.builder.joined_linears import join_linears

HIDDEN, TOKENS = 8, 3
ROWS = {"gate": 5, "up": 5, "third": 5, "other": 4}
RANDOM = np.random.default_rng(0)
WEIGHTS = {
    name: RANDOM.standard_normal((rows, HIDDEN)).astype(np.float32)
    for name, rows in ROWS.items()
}
FEEDS = {
    name: RANDOM.standard_normal((TOKENS, HIDDEN)).astype(np.float32) for name in ("x", "y")
}


@pytest.fixture(autouse=True)
def _any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joined_linears, "_LEAST_BYTES", 0)


def _model(
    directory: Path,
    stored: Sequence[str],
    *,
    inputs: Mapping[str, str] | None = None,
    bias: str = "",
    read_twice: str = "",
) -> ir.Model:
    """Return linears of x, or of `inputs`, whose weights lie in the order `stored` of one file.

    The linear `bias` has one. The weight `read_twice` is also an operand of another node.
    """
    places = {name: ir.Value(name=name, shape=ir.Shape(FEEDS[name].shape)) for name in FEEDS}
    weights = {
        name: ir.Value(name=name, const_value=ir.tensor(WEIGHTS[name])) for name in stored
    }
    constants, nodes, ends = dict(weights), [], []
    for name in sorted(stored):
        operands = [places[(inputs or {}).get(name, "x")], weights[name]]
        if name == bias:
            ones = ir.tensor(np.ones(ROWS[name], np.float32))
            constants["bias"] = ir.Value(name="bias", const_value=ones)
            operands.append(constants["bias"])
        product = ir.node("Gemm", operands, {"transB": 1})
        nodes += [product, ir.node("Neg", [product.outputs[0]])]
        ends.append(nodes[-1].outputs[0])
    if read_twice:
        nodes.append(ir.node("Neg", [weights[read_twice]]))
        ends.append(nodes[-1].outputs[0])
    for index, end in enumerate(ends):
        end.name = f"end{index}"
    for value in (*places.values(), *ends):
        value.type = ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(
        list(places.values()),
        ends,
        nodes=nodes,
        initializers=list(constants.values()),
        opset_imports={"": 21},
        name="linears",
    )
    model = ir.Model(graph, ir_version=10)
    move_weights(list(weights.values()), directory / "weights.safetensors")
    return model


def _results(model: ir.Model, directory: Path) -> list[np.ndarray]:
    path = directory / "model.onnx"
    path.write_bytes(ir.to_proto(model).SerializeToString())
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    results: list[np.ndarray] = session.run(None, FEEDS)
    return results


def _products(model: ir.Model) -> int:
    return [node.op_type for node in model.graph].count("Gemm")


@pytest.mark.parametrize(
    ("stored", "joined"),
    [(("gate", "up"), 2), (("up", "gate"), 2), (("up", "third", "gate"), 3)],
)
def test_neighbours_are_one_product(
    stored: tuple[str, ...], joined: int, tmp_path: Path
) -> None:
    model = _model(tmp_path, stored)
    expected = _results(model, tmp_path)
    assert join_linears(model) == joined
    assert _products(model) == 1
    for found, wanted in zip(_results(model, tmp_path), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_small_weights_are_left_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A join costs code, and would save nothing to speak of."""
    both = sum(WEIGHTS[name].nbytes for name in ("gate", "up"))
    for least, joined in ((both + 1, 0), (both, 2)):
        monkeypatch.setattr(joined_linears, "_LEAST_BYTES", least)
        assert join_linears(_model(tmp_path, ["gate", "up"])) == joined


def test_joined_weights_are_the_file_s_bytes(tmp_path: Path) -> None:
    model = _model(tmp_path, ["up", "gate"])
    join_linears(model)
    tensor = model.graph.initializers["up.joined"].const_value
    assert isinstance(tensor, ir.ExternalTensor)
    assert stored_bytes(tensor).tobytes() == b"".join(
        WEIGHTS[name].tobytes() for name in ("up", "gate")
    )
    assert not model.graph.initializers.keys() & {"up", "gate"}


@pytest.mark.parametrize(
    ("stored", "change"),
    [
        (("gate", "third", "up"), {"inputs": {"third": "y"}}),  # not neighbours
        (("gate", "up", "other"), {}),  # of other sizes
        (("gate", "up"), {"inputs": {"up": "y"}}),
        (("gate", "up"), {"bias": "up"}),
        (("gate", "up"), {"read_twice": "up"}),
    ],
)
def test_other_linears_stay_apart(
    stored: tuple[str, ...], change: dict[str, object], tmp_path: Path
) -> None:
    model = _model(tmp_path, stored, **change)  # type: ignore[arg-type]
    assert join_linears(model) == 0
    assert _products(model) == len(stored)
