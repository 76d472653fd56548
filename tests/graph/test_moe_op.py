"""The operator of experts against an independent NumPy twin that goes token by token in float64."""

from __future__ import annotations

from itertools import product

import numpy as np
import onnx_ir as ir
import pytest

from tests.graph.run_op import run_op
from trtllm_dflash.errors import GraphError
from trtllm_dflash.graph.builder import GraphBuilder
from trtllm_dflash.graph.ops import MOE

N, E, H, SIZE = 6, 5, 12, 7
# float32 sums of at most 12 terms, twice, and a sum over experts
TOLERANCE = 64 * np.finfo(np.float32).eps


def _inputs(seed: int, tokens: int = N) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {
        "x": (tokens, H),
        "router_logits": (tokens, E),
        "gate_up": (E, 2 * SIZE, H),
        "gate_up_bias": (E, 2 * SIZE),
        "down": (E, H, SIZE),
        "down_bias": (E, H),
    }
    return {
        name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()
    }


def _twin(
    inputs: dict[str, np.ndarray],
    top_k: int,
    normalize: int,
    interleaved: int,
    limit: float,
    alpha: float,
    shift: float,
) -> np.ndarray:
    x, logits, gate_up, gate_up_bias, down, down_bias = (
        array.astype(np.float64) for array in inputs.values()
    )
    out = np.zeros(x.shape)
    for token in range(len(x)):
        chosen = sorted(range(E), key=lambda expert: -logits[token, expert])[:top_k]
        among = chosen if normalize else range(E)
        mass = sum(np.exp(logits[token, expert]) for expert in among)
        for expert in chosen:
            both = gate_up[expert] @ x[token] + gate_up_bias[expert]
            gate, up = (both[::2], both[1::2]) if interleaved else (both[:SIZE], both[SIZE:])
            if limit:
                gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
            inner = (up + shift) * gate / (1 + np.exp(-alpha * gate))
            out[token] += (
                np.exp(logits[token, expert])
                / mass
                * (down[expert] @ inner + down_bias[expert])
            )
    return out


@pytest.mark.parametrize(("normalize", "interleaved"), list(product((0, 1), (0, 1))))
@pytest.mark.parametrize(
    ("top_k", "limit", "alpha", "shift"),
    [(1, 0.0, 1.0, 0.0), (2, 1.5, 1.702, 1.0), (E, 0.5, 0.5, -0.25)],
)
def test_body(
    normalize: int, interleaved: int, top_k: int, limit: float, alpha: float, shift: float
) -> None:
    inputs = _inputs(top_k)
    attributes = {"top_k": top_k, "normalize": normalize, "interleaved": interleaved}
    attributes |= {"limit": limit, "alpha": alpha, "shift": shift}
    want = _twin(inputs, **attributes)
    got = run_op("DFlashMoE", inputs, **attributes)["out"]
    np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE * np.abs(want).max())
    for name, value in attributes.items():  # a body that reads none of them would be seen
        if (name, value) not in {("top_k", E), ("limit", 0.0)} and (name, top_k) != (
            "normalize",
            E,
        ):
            other = attributes | {
                name: {"limit": 0.1, "alpha": value + 1, "shift": value + 1}.get(
                    name, 1 - value
                )
            }
            if other["top_k"]:
                assert np.abs(_twin(inputs, **other) - want).max() > 0.01, name


def test_no_token_and_one_token() -> None:
    for tokens in (0, 1):
        inputs = _inputs(3, tokens)
        got = run_op("DFlashMoE", inputs, top_k=2)["out"]
        assert got.shape == (tokens, H)
        np.testing.assert_allclose(
            got, _twin(inputs, 2, 1, 0, 0.0, 1.0, 0.0), rtol=0, atol=1e-4
        )


def test_a_body_takes_no_codes() -> None:
    g = GraphBuilder()
    values = [ir.Value(name=str(index)) for index in range(8)]
    MOE(g, *values, top_k=1, weight_format=1)
    with pytest.raises(
        GraphError, match="a body multiplies numbers; codes and their scales are for its plugin"
    ):
        MOE.functions(g.nodes)
