"""The timed DFlashGatedDelta: a step of Qwen3.5's linear attention, the expected result, and
PyTorch's way.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from plugins.bench.gpu_check.torch_operators import Tensors, WrongResultError

HEAD_DIM = 128
HISTORY = 3  # rows before a row that its convolution sees


@dataclass(frozen=True)
class DeltaHeads:
    """The heads of one layer of linear attention."""

    name: str
    key_heads: int
    value_heads: int

    @property
    def channels(self) -> int:
        return (2 * self.key_heads + self.value_heads) * HEAD_DIM


DELTA_HEADS = DeltaHeads("Qwen3.6-27B", 16, 48), DeltaHeads("Qwen3.6-35B-A3B", 16, 32)


@dataclass(frozen=True)
class DeltaWork:
    """A step of `rows` rows, of which `known` are certain, behind `open_rows` accepted drafts, in
    each of `batch` slots.
    """

    heads: DeltaHeads
    rows: int
    known: int
    open_rows: int
    batch: int

    def __str__(self) -> str:
        known = f", {self.known} certain" if self.known > 1 else ""
        return (
            f"{self.heads.name}, {self.batch} × {self.rows} rows{known}, {self.open_rows} open"
        )

    @property
    def fields(self) -> dict[str, int | float]:
        """Return the fields of its plugin."""
        sizes = {"key_dim": HEAD_DIM, "value_dim": HEAD_DIM, "conv_kernel": HISTORY + 1}
        return {"num_key_heads": self.heads.key_heads, **sizes}

    @property
    def bytes(self) -> int:
        """Return the least bytes to move.

        These are the states, read and written once, the window's rows that are read and those that
        are written, the step's rows, and out.
        """
        h = self.heads
        state = 2 * 4 * h.value_heads * HEAD_DIM * HEAD_DIM
        row = 2 * (h.channels + 2 * h.value_heads)
        moved = min(HISTORY + self.rows - self.known, HISTORY + self.open_rows)
        rows = HISTORY + self.open_rows + moved + self.rows
        out = 2 * self.rows * h.value_heads * HEAD_DIM
        return self.batch * (state + rows * row + out)

    def tensors(self, device: str, seed: int) -> Tensors:
        """Make random inputs of slots with 100 positions in the state; out is full of NaN."""
        generator = torch.Generator(device=device).manual_seed(seed)

        def random(*size: int) -> torch.Tensor:
            return torch.randn(size, device=device, generator=generator)

        def lengths(value: int) -> torch.Tensor:
            return torch.full((self.batch,), value, dtype=torch.int32, device=device)

        h = self.heads
        slots_rows = self.batch, self.rows
        window = self.batch, 1, HISTORY + self.open_rows, h.channels + 2 * h.value_heads
        out = random(*slots_rows, h.value_heads, HEAD_DIM).bfloat16()
        return {
            "qkv": random(*slots_rows, h.channels).bfloat16(),
            "gates": random(*slots_rows, 2 * h.value_heads).bfloat16(),
            "conv_weight": (0.5 * random(h.channels, 1, HISTORY + 1)).bfloat16(),
            "a_log": 0.5 * random(h.value_heads) - 2,
            "dt_bias": random(h.value_heads) - 2,
            "window": random(*window).bfloat16(),
            "state": 0.1 * random(self.batch, h.value_heads, HEAD_DIM, HEAD_DIM),
            "past_len": lengths(100 + self.open_rows),
            "state_len": lengths(100),
            "num_known": lengths(self.known),
            "out": torch.full_like(out, math.nan),
        }


def delta_rows(work: DeltaWork, t: Tensors, dtype: torch.dtype) -> Iterator[Tensors]:
    """Yield q, k, v [B, Hv, D], decay and beta [B, Hv, 1, 1] of each row in `dtype`."""
    h, count = work.heads, work.open_rows + work.rows
    raw = torch.cat([t["window"][:, 0], torch.cat([t["qkv"], t["gates"]], -1)], 1).to(dtype)
    u, gates = raw.split([h.channels, 2 * h.value_heads], -1)
    weight = t["conv_weight"][:, 0].to(dtype)
    taps = (u[:, o : o + count] * weight[:, o] for o in range(HISTORY + 1))
    mixed = torch.nn.functional.silu(torch.stack(list(taps)).sum(0))
    heads = mixed.unflatten(-1, (-1, HEAD_DIM))
    q, k, v = heads.split([h.key_heads, h.key_heads, h.value_heads], 2)
    group = h.value_heads // h.key_heads
    q, k = (
        (x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)).repeat_interleave(group, 2)
        for x in (q, k)
    )
    b, a = gates[:, HISTORY:, :, None, None].chunk(2, 2)
    slope = t["a_log"].to(dtype).exp()[:, None, None]
    bias = t["dt_bias"].to(dtype)[:, None, None]
    decay = (-slope * torch.nn.functional.softplus(a + bias)).exp()
    for row in range(count):
        parts = {"q": q * HEAD_DIM**-0.5, "k": k, "v": v, "decay": decay, "beta": b.sigmoid()}
        yield {name: part[:, row] for name, part in parts.items()}


def delta_by_rows(
    work: DeltaWork, t: Tensors, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return out [B, S, Hv, D] and the state behind the certain rows, row after row in `dtype`."""
    state, outs, kept = t["state"].to(dtype), [], None
    for number, row in enumerate(delta_rows(work, t, dtype), 1):
        state = state * row["decay"]
        found = (row["k"][..., None, :] @ state)[..., 0, :]
        change = (row["v"] - found) * row["beta"][..., 0]
        state = state + row["k"][..., None] * change[..., None, :]
        outs.append((row["q"][..., None, :] @ state)[..., 0, :])
        if number == work.open_rows + work.known:
            kept = state
    assert kept is not None
    return torch.stack(outs[work.open_rows :], 1), kept


def check_delta(
    work: DeltaWork, expected: tuple[torch.Tensor, torch.Tensor], t: Tensors
) -> None:
    """Check out and state against float64's: float32, and the rounding of out, may differ.

    Raises:
        WrongResultError: with the largest error.
    """
    out, state = expected
    lost = 2.0**-18 * max(float(state.abs().max()), 1)
    errors = {"out": (t["out"].double() - out).abs() - 2.0**-8 * out.abs()}
    errors["state"] = (t["state"].double() - state).abs()
    for name, error in errors.items():
        worst = float(error.nan_to_num(math.inf).max())
        if worst > lost:
            raise WrongResultError(f"{work}: {name} is off by {worst:.3g}, allowed {lost:.3g}")
