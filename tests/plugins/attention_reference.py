"""Cases of attention, their expected results in float64, and what eager bfloat16 makes of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from tests.plugins.library import BFLOAT16, FP8


@dataclass(frozen=True)
class Case:
    """One launch. `past`: each slot's length before it; `committed`: how many context rows hold
    (drafts only).
    """

    past: tuple[int, ...]
    rows: int
    head_dim: int = 64
    kv_heads: int = 2
    group: int = 4
    window: int = 0
    sinks: bool = False
    causal: bool = True
    committed: tuple[int, ...] = ()
    context_rows: int = 0
    spare: int = 5  # cache rows behind the longest slot's last
    processors: int = 1
    order: str = "forward"
    cache_scales: tuple[float, float] | None = (
        None  # of keys and of values, where the caches are FP8
    )

    @property
    def draft(self) -> bool:
        return self.context_rows > 0

    @property
    def starts(self) -> np.ndarray:
        """First block position of each slot."""
        return np.array(self.past) + np.array(self.committed or [0] * len(self.past))

    def __str__(self) -> str:
        kind = "draft" if self.draft else "verify"
        parts = [
            kind,
            f"d{self.head_dim}",
            f"kv{self.kv_heads}x{self.group}",
            f"rows{self.rows}",
        ]
        parts += ["past" + "_".join(map(str, self.past)), f"cta{self.processors}", self.order]
        parts += (
            [f"w{self.window}"] * bool(self.window)
            + ["sinks"] * self.sinks
            + ["causal"] * self.causal
        )
        parts += [f"fp8_{scale:g}" for scale in self.cache_scales or ()]
        return "-".join(parts)


def inputs(case: Case, seed: int = 0) -> dict[str, np.ndarray]:
    """Random tensors of the operation's inputs. The caches hold numbers up to each slot's length
    and NaN behind it.
    """
    rng = np.random.default_rng(seed)
    batch, step = len(case.past), case.context_rows + case.rows
    cache_len = int(case.starts.max()) + case.rows + case.spare

    def random(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32).astype(BFLOAT16)

    made = {
        "q": random(batch, case.rows, case.kv_heads * case.group, case.head_dim),
        "k": random(batch, step, case.kv_heads, case.head_dim),
        "v": random(batch, step, case.kv_heads, case.head_dim),
        "key_cache": random(batch, case.kv_heads, cache_len, case.head_dim),
        "value_cache": random(batch, case.kv_heads, cache_len, case.head_dim),
    }
    for name, scale in zip(("key_cache", "value_cache"), case.cache_scales or (), strict=False):
        made[name] = codes(made[name], scale)
    context = np.array(case.past)[:, None] + np.arange(case.context_rows)
    made["positions"] = np.concatenate(
        [context, case.starts[:, None] + np.arange(case.rows)], axis=1
    )
    for slot, past in enumerate(case.past):
        for name in ("key_cache", "value_cache"):
            made[name][slot, :, past:] = np.nan
        for name in ("k", "v"):  # a rejected row is never looked at
            made[name][slot, case.starts[slot] - past : case.context_rows] = np.nan
    if case.sinks:
        made["sinks"] = random(case.kv_heads * case.group)
    return made


def codes(numbers: np.ndarray, scale: float) -> np.ndarray:
    """FP8 codes of numbers / scale: divided in float32, saturated, to the nearest with ties to
    even.
    """
    return np.clip(numbers.astype(np.float32) / np.float32(scale), -448, 448).astype(FP8)


def written_caches(case: Case, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the caches after the launch: the kept context rows and the block's, all else as it
    was.
    """
    after = {}
    for index, (cache, rows) in enumerate((("key_cache", "k"), ("value_cache", "v"))):
        after[cache] = given[cache].copy()
        for slot, (past, start) in enumerate(zip(case.past, case.starts, strict=True)):
            step = given[rows][slot].transpose(1, 0, 2)
            step = codes(step, case.cache_scales[index]) if case.cache_scales else step
            after[cache][slot, :, past:start] = step[:, : start - past]
            after[cache][slot, :, start : start + case.rows] = step[:, case.context_rows :]
    return after


def seen(case: Case, slot: int) -> np.ndarray:
    """Return which keys [rows, keys] each block row sees, among those before the block's end."""
    start = case.starts[slot]
    distance = (start + np.arange(case.rows))[:, None] - np.arange(start + case.rows)
    visible = np.ones(distance.shape, bool)
    if case.causal:
        visible &= distance >= 0
    if case.window:
        visible &= np.abs(distance) < case.window
    return visible


Rounding = Callable[[np.ndarray], np.ndarray]


def attend(
    case: Case, given: dict[str, np.ndarray], scale: float, rounded: Rounding
) -> np.ndarray:
    """Attention out [B, T, Hq, D], where each product of matrices and the weights pass through
    `rounded`.
    """
    caches = written_caches(case, given)
    out = np.zeros(given["q"].shape)
    for slot in range(len(case.past)):
        visible = seen(case, slot)[:, None]
        for head in range(case.kv_heads):
            heads = slice(head * case.group, (head + 1) * case.group)
            q = given["q"][slot, :, heads].astype(np.float64)
            keys, values = (
                caches[name][slot, head, : visible.shape[-1]].astype(np.float64)
                * float(np.float32(worth))
                for name, worth in zip(
                    ("key_cache", "value_cache"), case.cache_scales or (1, 1), strict=True
                )
            )
            scores = np.where(visible, rounded(q @ keys.T) * scale, -np.inf)
            sinks = (
                given["sinks"][heads].astype(np.float64)
                if case.sinks
                else np.full(case.group, -np.inf)
            )
            largest = np.maximum(scores.max(-1), sinks)[..., None]
            weights = np.exp(scores - largest)
            total = weights.sum(-1, keepdims=True) + np.exp(sinks[:, None] - largest)
            out[slot, :, heads] = rounded(rounded(weights / total) @ values)
    return out


def exactly(x: np.ndarray) -> np.ndarray:
    return x


def to_bfloat16(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float32).astype(BFLOAT16).astype(np.float64)


def assert_as_good_as_eager(
    case: Case, given: dict[str, np.ndarray], got: np.ndarray, scale: float
) -> None:
    """Check each head row's error: at most twice eager bfloat16's, plus the result's rounding.

    Errors are norms over head_dim, against float64. Eager may be exact by chance. A kernel rounds
    its weights and its result, each by up to half of bfloat16's eps. So eps times the row's norm is
    always allowed.
    """
    exact = attend(case, given, scale, exactly)
    eager = attend(case, given, scale, to_bfloat16)
    assert np.isfinite(got.astype(np.float64)).all(), (
        f"not finite first at {np.argwhere(~np.isfinite(got.astype(float)))[0]}"
    )

    def norm(x: np.ndarray) -> np.ndarray:
        return np.sqrt((x**2).sum(-1))

    error = norm(got.astype(np.float64) - exact)
    allowed = 2 * norm(eager - exact) + 2.0**-8 * norm(exact)
    worst = np.unravel_index((error / allowed).argmax(), error.shape)
    assert (error <= allowed).all(), (
        f"{case}: head row {tuple(map(int, worst))} is off by {error[worst]:.3g}, allowed"
        f" {allowed[worst]:.3g}; got {got[worst][:4]}, expected {exact[worst][:4]}"
    )


def assert_close(case: Case, given: dict[str, np.ndarray], got: dict[str, np.ndarray]) -> None:
    """Check that the caches are exact and `out` is as near to float64's as eager bfloat16."""
    for name, expected in written_caches(case, given).items():
        bits = (array.view(f"u{array.itemsize}") for array in (got[name], expected))
        np.testing.assert_array_equal(*bits, err_msg=f"{case}: {name}")
    assert_as_good_as_eager(case, given, got["out"], case.head_dim**-0.5)


def reordered(cases: list[Case]) -> list[Case]:
    """Return the cases, each in another of the emulator's orders than its neighbour."""
    orders = ("forward", "reverse", "random")
    return [replace(case, order=orders[i % 3]) for i, case in enumerate(cases)]
