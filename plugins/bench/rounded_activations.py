"""How far an expert's result moves when its tokens are rounded for block-scaled products.

`python plugins/bench/rounded_activations.py` prints a table, in seconds and without a GPU. The
kernels multiply weights with bfloat16 tokens. Block-scaled products (`mma.sync` with
`.block_scale`) take them in FP8 or FP4 instead, a scale for each block. Blocks and scales are those
of the OCP Microscaling specification 1.0, and of NVFP4.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import ml_dtypes
import numpy as np

HIDDEN = INNER = 2880  # gpt-oss's
_TOKENS = 32
_WEIGHTS = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], np.float32)  # E2M1
_WEIGHT_BLOCK = 32
_LIMIT, _ALPHA, _SHIFT = 7.0, 1.702, 1.0  # of gpt-oss's activation

Array = np.ndarray
Round = Callable[[Array], Array]


def to_bfloat16(x: Array) -> Array:
    """Return the nearest bfloat16 numbers."""
    return x.astype(ml_dtypes.bfloat16).astype(np.float64)


def _power_of_two_blocks(x: Array, dtype: type, largest: float, exponent: int) -> Array:
    """Round blocks of 32 to `dtype`, with a power of two as their scale.

    `exponent` is that of `largest`, the largest number, which is given for what is beyond it.
    """
    blocks = x.reshape(*x.shape[:-1], -1, 32)
    size = np.maximum(np.abs(blocks).max(-1, keepdims=True), 2.0**-120)
    scale = 2.0 ** (np.floor(np.log2(size)) - exponent)
    codes = np.clip(blocks / scale, -largest, largest).astype(dtype)
    return np.asarray(codes.astype(np.float64) * scale).reshape(x.shape)


def to_mxfp8(x: Array) -> Array:
    """Return the numbers that MXFP8 (E4M3) has for x [..., a multiple of 32]."""
    return _power_of_two_blocks(x, ml_dtypes.float8_e4m3fn, 448.0, 8)


def to_mxfp4(x: Array) -> Array:
    """Return the numbers that MXFP4 has for x [..., a multiple of 32]."""
    return _power_of_two_blocks(x, ml_dtypes.float4_e2m1fn, 6.0, 2)


def to_nvfp4(x: Array) -> Array:
    """Return the numbers that NVFP4 has for x [..., a multiple of 16], each token with a scale."""
    blocks = x.reshape(*x.shape[:-1], -1, 16)
    size = np.maximum(np.abs(blocks).max(-1, keepdims=True), 2.0**-120)
    token_scale = size.max(-2, keepdims=True) / (6 * 448)
    scale = (size / 6 / token_scale).astype(ml_dtypes.float8_e4m3fn).astype(np.float64)
    scale = np.where(scale > 0, scale, 2.0**-9) * token_scale
    codes = np.clip(blocks / scale, -6, 6).astype(ml_dtypes.float4_e2m1fn)
    return np.asarray(codes.astype(np.float64) * scale).reshape(x.shape)


ROUNDINGS: dict[str, Round] = {
    "bfloat16": to_bfloat16,
    "MXFP8": to_mxfp8,
    "NVFP4": to_nvfp4,
    "MXFP4": to_mxfp4,
}


def _weights(rows: int, columns: int, rng: np.random.Generator) -> Array:
    """Return MXFP4 weights [rows, columns] of random codes, about columns^-0.5 in size."""
    signs = rng.choice([-1.0, 1.0], (rows, columns))
    scales = 2.0 ** (rng.integers(-1, 2, (rows, columns // _WEIGHT_BLOCK)) - 2)
    numbers = rng.choice(_WEIGHTS, (rows, columns)) * signs * columns**-0.5
    return np.asarray(numbers * np.repeat(scales, _WEIGHT_BLOCK, 1), np.float64)


def _tokens(kind: str, size: int, rng: np.random.Generator) -> Array:
    """Return tokens as a norm leaves them: normal ones, or with some columns ten times as large."""
    x = rng.standard_normal((_TOKENS, size))
    if kind == "outliers":
        x[:, rng.random(size) < 0.01] *= 10
    return to_bfloat16(x)


def relative_errors(kind: str, hidden: int = HIDDEN, inner: int = INNER) -> dict[str, float]:
    """Return the error of an expert's result by rounding, over the result's size (both RMS).

    Tokens are bfloat16, and so is the sum of products. Both an expert's input and what its
    activation gives are rounded, each before it is multiplied; everything else is float64.
    """
    rng = np.random.default_rng(1)
    gate, up = _weights(inner, hidden, rng), _weights(inner, hidden, rng)
    down = _weights(hidden, inner, rng)
    tokens = _tokens(kind, hidden, rng)

    def expert(rounded: Round) -> Array:
        x = rounded(tokens)
        gates, ups = x @ gate.T, x @ up.T
        gates, ups = np.minimum(gates, _LIMIT), np.clip(ups, -_LIMIT, _LIMIT)
        activated = (ups + _SHIFT) * gates / (1 + np.exp(-_ALPHA * gates))
        return np.asarray(rounded(activated) @ down.T)

    exact = expert(lambda x: x)
    size = float(np.sqrt((exact**2).mean()))
    return {
        name: float(np.sqrt(((expert(rounded) - exact) ** 2).mean())) / size
        for name, rounded in ROUNDINGS.items()
    }


def table() -> str:
    """Return the errors of every rounding in Markdown."""
    kinds = ("normal", "outliers")
    errors = [relative_errors(kind) for kind in kinds]
    lines = [f"| tokens | {' | '.join(ROUNDINGS)} |", f"|---|{'---|' * len(ROUNDINGS)}"]
    for kind, found in zip(kinds, errors, strict=True):
        cells = " | ".join(f"{100 * found[name]:.2g} %" for name in ROUNDINGS)
        lines.append(f"| {kind} | {cells} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(table())
