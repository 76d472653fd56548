"""Cases of DFlashBlockLinear, the result in float64, and how far from it a kernel may be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from tests.plugins.library import BFLOAT16
from tests.plugins.moe_reference import (
    BFLOAT16_HALF,
    FLOAT32_HALF,
    FP8_BLOCK,
    e4m3_bytes,
    fp8_numbers,
    fp8_scale_shape,
)


@dataclass(frozen=True)
class Case:
    """One call: `tokens` rows of x, and a weight [out_size, in_size]."""

    tokens: int
    out_size: int
    in_size: int
    bias: bool = False
    order: str = "forward"
    seed: int = field(default=0, compare=False)

    def __str__(self) -> str:
        bias = "-bias" * self.bias
        return f"n{self.tokens}-o{self.out_size}-i{self.in_size}{bias}-{self.order}"


def inputs(case: Case) -> dict[str, np.ndarray]:
    """Return random inputs; weights are about in_size^-0.5, some blocks smaller."""
    rng = np.random.default_rng(case.seed)
    shape = fp8_scale_shape(FP8_BLOCK, case.out_size, case.in_size)
    scales = case.in_size**-0.5 / 256 * 2.0 ** -rng.integers(0, 6, shape)
    made = {
        "x": rng.standard_normal((case.tokens, case.in_size)).astype(BFLOAT16),
        "weight": e4m3_bytes((case.out_size, case.in_size), rng).view(np.int32),
        "scales": (scales * (1 + rng.random(shape))).astype(np.float32),
    }
    if case.bias:
        made["bias"] = rng.standard_normal(case.out_size).astype(BFLOAT16)
    return made


def expected(given: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """out [N, O] in float64, and how far from it a kernel may be, element by element.

    A sum of n products in float32 may be off by n half eps of the sum of magnitudes. Products with
    scales add less than eight. The result is rounded to bfloat16.
    """
    weight = fp8_numbers(given["weight"].view(np.uint8), given["scales"])
    x = given["x"].astype(np.float64)
    bias = given["bias"].astype(np.float64) if "bias" in given else 0.0
    out = x @ weight.T + bias
    size = np.abs(x) @ np.abs(weight).T + np.abs(bias)
    off = (x.shape[1] + 8) * FLOAT32_HALF * size
    return out, 1.01 * off + BFLOAT16_HALF * (np.abs(out) + off)


def assert_close(case: Case, given: Mapping[str, np.ndarray], got: np.ndarray) -> None:
    """Check that every element is as near to float64's as the kernel's roundings allow."""
    out, allowed = expected(given)
    error = np.abs(got.astype(np.float64) - out)
    wrong = [tuple(map(int, index)) for index in np.argwhere(~(error <= allowed))]
    assert not wrong, (
        f"{case}: {len(wrong)} of {error.size} wrong, first at {wrong[0]}: got {got[wrong[0]]}, "
        f"expected {out[wrong[0]]:.6g} ± {allowed[wrong[0]]:.2g}"
    )
