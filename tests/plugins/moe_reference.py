"""Cases of DFlashMoE, its expected result in float64, and how far from that the kernels may be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import ml_dtypes
import numpy as np

from tests.plugins.library import BFLOAT16, FP8, MoeOptions

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
CODES = np.concatenate([E2M1, -E2M1])  # by code
FORMATS = {0: "bfloat16", 1: "mxfp4", 2: "nvfp4", 3: "fp8"}
FP8_FORMAT, FP8_BLOCK = 3, 128
BFLOAT16_HALF, FLOAT32_HALF = (
    2.0**-8,
    2.0**-24,
)  # half of eps: what one rounding may change, relative to the number


@dataclass(frozen=True)
class Case:
    """One call. `logits`: "random", "ties", "one" (every token wants the same experts) or "few" (of
    five experts). `block_rows` is of FP8, whose rows are never interleaved; see `fitting`.
    """

    tokens: int
    weight_format: int
    hidden: int = 96
    inner: int = 64
    experts: int = 6
    top_k: int = 2
    normalize: bool = True
    interleaved: bool = False
    limit: float = 0.0
    alpha: float = 1.0
    shift: float = 0.0
    block_rows: int = 0
    logits: str = "random"
    order: str = "forward"
    seed: int = field(default=0, compare=False)

    def __str__(self) -> str:
        sizes = f"n{self.tokens}-h{self.hidden}-i{self.inner}-e{self.experts}k{self.top_k}"
        kind = "interleaved" if self.interleaved else "halves"
        share = "chosen" if self.normalize else "all"
        limit = f"l{self.limit:g}"
        kind += f"-b{self.block_rows}" * bool(self.block_rows)
        parts = FORMATS[self.weight_format], sizes, kind, share, limit, self.logits, self.order
        return "-".join(parts)

    @property
    def options(self) -> MoeOptions:
        """Return what the C library is told."""
        numbers = (
            self.top_k,
            self.normalize,
            self.interleaved,
            self.weight_format,
            self.block_rows,
            self.limit,
            self.alpha,
            self.shift,
        )
        return MoeOptions(*numbers)

    @property
    def fields(self) -> dict[str, int | float]:
        """Return what a plugin is told."""
        ints = {
            "top_k": self.top_k,
            "normalize": int(self.normalize),
            "interleaved": int(self.interleaved),
        }
        floats = {"limit": self.limit, "alpha": self.alpha, "shift": self.shift}
        formats = {"weight_format": self.weight_format, "block_rows": self.block_rows}
        return {**ints, **floats, **formats}


def gpt_oss(case: Case) -> Case:
    """Return the case with gpt-oss's activation and layout."""
    return replace(case, interleaved=True, limit=7.0, alpha=1.702, shift=1.0, normalize=True)


def fitting(case: Case, block_rows: int = FP8_BLOCK) -> Case:
    """Return the case as its format may be: FP8 has `block_rows`, and no interleaving."""
    if case.weight_format != FP8_FORMAT:
        return case
    return replace(case, interleaved=False, block_rows=block_rows)


def logits(case: Case, rng: np.random.Generator) -> np.ndarray:
    """[N, E] float32."""
    made = rng.standard_normal((case.tokens, case.experts), dtype=np.float32) * 2
    if case.logits == "ties":
        made = np.round(made)  # -0 and 0 among them
    if case.logits == "one":
        made = made[:1] + 0.01 * np.arange(case.tokens, dtype=np.float32)[:, None]
    if case.logits == "few":
        made[:, 5:] -= 100
    return made


def inputs(case: Case) -> dict[str, np.ndarray]:
    """Random tensors of the operator's inputs, in the types that its format has."""
    rng = np.random.default_rng(case.seed)
    e, h, i = case.experts, case.hidden, case.inner

    def random(*shape: int, size: float = 1.0) -> np.ndarray:
        return (size * rng.standard_normal(shape, dtype=np.float32)).astype(BFLOAT16)

    made = {"x": random(case.tokens, h), "router_logits": logits(case, rng)}
    scales: dict[str, np.ndarray] = {}
    for name, rows, columns in (("gate_up", 2 * i, h), ("down", h, i)):
        if case.weight_format == 0:
            made[name] = random(e, rows, columns, size=columns**-0.5)
        elif case.weight_format == FP8_FORMAT:
            made[name] = e4m3_bytes((e, rows, columns), rng).view(np.int32)
            halves = 2 if name == "gate_up" else 1
            shape = fp8_scale_shape(case.block_rows, rows // halves, columns)
            worth = columns**-0.5 / 256 * 2.0 ** -rng.integers(0, 6, (e, halves, *shape))
            worth *= 1 + rng.random(worth.shape)
            scales[f"{name}_scale"] = worth.astype(np.float32).reshape(e, -1).view(np.int32)
        else:
            made[name] = rng.integers(0, 256, (e, rows, columns // 2), np.uint8).view(np.int32)
            scales |= _scales(case.weight_format, name, (e, rows, columns), rng)
        made[f"{name}_bias"] = random(e, rows, size=0.5)
    return made | {
        name: scales[name]
        for name in sorted(scales, key=lambda n: (n.endswith("_2"), n == "down_scale"))
    }


def e4m3_bytes(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Return codes of E4M3, all but NaN's equally often."""
    made = rng.integers(0, 256, shape, np.uint8)
    return made - (made & 0x7F == 0x7F)


def fp8_scale_shape(block_rows: int, rows: int, columns: int) -> tuple[int, int]:
    """Return how many scales a weight [rows, columns] has along both axes."""
    return -(-rows // block_rows), 1 if block_rows == 1 else -(-columns // FP8_BLOCK)


def fp8_numbers(
    packed: np.ndarray, scales: np.ndarray, block_rows: int = FP8_BLOCK
) -> np.ndarray:
    """Return what codes [rows, columns] and float32 scales of their blocks mean, in float64."""
    rows, columns = packed.shape
    block_columns = columns if block_rows == 1 else FP8_BLOCK
    worth = scales.reshape(fp8_scale_shape(block_rows, rows, columns)).astype(np.float64)
    worth = np.repeat(np.repeat(worth, block_rows, 0), block_columns, 1)
    return packed.view(FP8).astype(np.float64) * worth[:rows, :columns]


def _scales(
    weight_format: int, name: str, shape: tuple[int, int, int], rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Such that weights are about columns^-0.5, some blocks 2^5 smaller."""
    e, rows, columns = shape
    typical = int(np.log2(columns) / 2) + 1
    if weight_format == 1:
        exponents = 127 - typical - rng.integers(0, 6, (e, rows, columns // 32))
        return {f"{name}_scale": exponents.astype(np.uint8).reshape(e, -1).view(np.int32)}
    blocks = (rng.random((e, rows, columns // 16)) * 300 + 1).astype(FP8)
    worth = (2.0 ** -(typical + 8) * (1 + rng.random(e))).astype(np.float32)
    return {f"{name}_scale": blocks.reshape(e, -1).view(np.int32), f"{name}_scale_2": worth}


def weights(given: Mapping[str, np.ndarray], name: str, weight_format: int) -> np.ndarray:
    """Return the numbers of gate_up or down, [E, rows, columns] float64: exactly what its bytes
    mean.
    """
    if weight_format == 0:
        return given[name].astype(np.float64)
    if weight_format == FP8_FORMAT:
        return _fp8_weights(given, name)
    codes = given[name].view(np.uint8)
    numbers = CODES[np.stack([codes & 15, codes >> 4], -1)].reshape(*codes.shape[:2], -1)
    block = {1: 32, 2: 16}[weight_format]
    blocks = given[f"{name}_scale"].view(np.uint8).reshape(*codes.shape[:2], -1)
    if weight_format == 1:
        worth = blocks.view(ml_dtypes.float8_e8m0fnu).astype(np.float64)
    else:
        worth = (
            blocks.view(FP8).astype(np.float64)
            * given[f"{name}_scale_2"].astype(np.float64)[:, None, None]
        )
    return numbers * np.repeat(worth, block, axis=-1)


def _fp8_weights(given: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """Gates and ups have blocks of their own; as many scales as rows are scales of rows."""
    packed, scales = given[name].view(np.uint8), given[f"{name}_scale"].view(np.float32)
    halves = 2 if name == "gate_up" else 1
    block_rows = 1 if scales.shape[1] == packed.shape[1] else FP8_BLOCK
    parts = []
    for own, own_scales in zip(packed, scales, strict=True):
        pairs = zip(np.split(own, halves), np.split(own_scales, halves), strict=True)
        parts += [fp8_numbers(half, of_half, block_rows) for half, of_half in pairs]
    return np.array(parts).reshape(packed.shape)


def chosen(case: Case, given: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return each token's experts [N, k], the first of equals first, and their float64 shares."""
    scores = given["router_logits"].astype(np.float64)
    index = np.argsort(-scores, axis=-1, kind="stable")[:, : case.top_k]
    taken = np.take_along_axis(scores, index, -1)
    of = taken if case.normalize else scores
    weight = np.exp(taken - taken[:, :1])
    return index, weight / np.exp(of - taken[:, :1]).sum(-1, keepdims=True)


def expected(case: Case, given: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """out [N, H] in float64, and how far from it a kernel may be, element by element.

    The roundings of the kernels are counted. A sum of n products in float32 may be off by n half
    eps of the sum of magnitudes. This goes through the activation, whose slope is at most 1.1 in
    gate, and through down. The activation's result and out are rounded to bfloat16. Exponentials
    and divisions get 2^-20.
    """
    index, share = chosen(case, given)
    gate_up, down = (weights(given, name, case.weight_format) for name in ("gate_up", "down"))
    x = given["x"].astype(np.float64)
    out, allowed = np.zeros(x.shape), np.zeros(x.shape)
    for expert in np.unique(index):
        token, choice = np.nonzero(index == expert)
        bias = given["gate_up_bias"][expert].astype(np.float64)
        both = x[token] @ gate_up[expert].T + bias
        size = np.abs(x[token]) @ np.abs(gate_up[expert]).T + np.abs(bias)
        inner, inner_off = _activated(case, both, size * (case.hidden + 8) * FLOAT32_HALF)
        bias, magnitudes = given["down_bias"][expert].astype(np.float64), np.abs(down[expert]).T
        result = inner @ down[expert].T + bias
        size = np.abs(inner) @ magnitudes + np.abs(bias)
        off = inner_off @ magnitudes + (case.inner + 16) * FLOAT32_HALF * size
        part = share[token, choice][:, None]
        np.add.at(out, token, part * result)
        np.add.at(
            allowed,
            token,
            part * (off + (case.top_k * 2 * FLOAT32_HALF + 2.0**-20) * np.abs(result)),
        )
    return out, 1.01 * allowed + BFLOAT16_HALF * np.abs(out)


def _activated(case: Case, both: np.ndarray, off: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the activation of gate and up [n, 2I], and how far off it may be where they are off by
    `off`.
    """
    halves = slice(0, None, 2), slice(1, None, 2)
    if not case.interleaved:
        halves = slice(0, case.inner), slice(case.inner, None)
    (gate, up), (gate_off, up_off) = (
        [array[:, half] for half in halves] for array in (both, off)
    )
    if case.limit:
        gate, up = np.minimum(gate, case.limit), np.clip(up, -case.limit, case.limit)
    slope = gate / (1 + np.exp(-np.clip(case.alpha * gate, -700, 700)))
    inner = (up + case.shift) * slope
    inner_off = 1.1 * np.abs(up + case.shift) * gate_off + np.abs(slope) * up_off
    return inner, inner_off + (BFLOAT16_HALF + 2.0**-20) * (np.abs(inner) + inner_off)


def assert_close(case: Case, given: Mapping[str, np.ndarray], got: np.ndarray) -> None:
    """Check that every element is as near to float64's as the kernels' roundings allow."""
    out, allowed = expected(case, given)
    error = np.abs(got.astype(np.float64) - out)
    wrong = [tuple(map(int, index)) for index in np.argwhere(~(error <= allowed))]
    assert not wrong, (
        f"{case}: {len(wrong)} of {error.size} wrong, first at {wrong[0]}: got {got[wrong[0]]}, "
        f"expected {out[wrong[0]]:.6g} ± {allowed[wrong[0]]:.2g}"
    )
