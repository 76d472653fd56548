"""Times of linears whose weights are FP8 in blocks, beside torch's from bfloat16."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from plugins.bench.gpu_check.operators import Operator
from plugins.bench.gpu_check.rows import Check
from plugins.bench.gpu_check.timing import seconds, set_count
from plugins.bench.gpu_check.torch_operators import (
    Machine,
    Tensors,
    add_best_other,
    check_rows,
    launcher,
)

_BLOCK = 128
_SIZES = ((4096, 4096), (12288, 4096), (1024, 4096))  # of Qwen3-8B: rows, columns
_TOKENS = (1, 16, 64, 2048)
_PROMPT = 1000  # tokens from which products count, and not bytes


@dataclass(frozen=True)
class LinearWork:
    """`tokens` rows of x times a weight [out_size, in_size]."""

    tokens: int
    out_size: int
    in_size: int

    @property
    def bytes(self) -> int:
        """Return the least bytes to move: the codes, x and out."""
        return self.out_size * self.in_size + 2 * self.tokens * (self.in_size + self.out_size)

    @property
    def operations(self) -> int:
        """Return the multiplications and additions."""
        return 2 * self.tokens * self.out_size * self.in_size

    def tensors(self, device: str, seed: int) -> Tensors:
        """Make random inputs; the result is full of NaN."""
        generator = torch.Generator(device=device).manual_seed(seed)

        def random(*size: int) -> torch.Tensor:
            return torch.randn(size, device=device, generator=generator)

        blocks = -(-self.out_size // _BLOCK), -(-self.in_size // _BLOCK)
        codes = random(self.out_size, self.in_size).mul(64).clamp(-448, 448)
        return {
            "x": random(self.tokens, self.in_size).bfloat16(),
            "weight": codes.to(torch.float8_e4m3fn).view(torch.int32),
            "scales": (1 + random(*blocks).abs()) * self.in_size**-0.5 / 64,
            "out": torch.full(
                (self.tokens, self.out_size), math.nan, dtype=torch.bfloat16, device=device
            ),
        }


def dequantized(t: Tensors, dtype: torch.dtype) -> torch.Tensor:
    """Return the weight [O, I] in `dtype`."""
    codes = t["weight"].view(torch.float8_e4m3fn).double()
    wide = t["scales"].double().repeat_interleave(_BLOCK, 0).repeat_interleave(_BLOCK, 1)
    return (codes * wide[: codes.shape[0], : codes.shape[1]]).to(dtype)


def check_linear(work: LinearWork, t: Tensors) -> None:
    """Raise WrongResultError if a row of out is too far from float64's (`check_rows`)."""
    exact = t["x"].double() @ dequantized(t, torch.float64).T
    eager = (t["x"] @ dequantized(t, torch.bfloat16).T).double()
    check_rows(str(work), t["out"], exact, eager)


def time_linear(check: Check) -> None:
    """Time block linears, a row for each size and number of tokens."""
    machine = Machine(check.folder)
    sizes = ((130, 272),) if check.small else _SIZES
    for out_size, in_size in sizes:
        for tokens in (3,) if check.small else _TOKENS:
            work = LinearWork(tokens, out_size, in_size)
            with check.case(f"{tokens} × {in_size} to {out_size}") as figures:
                figures |= _measure(work, machine)
            torch.cuda.empty_cache()


def _measure(work: LinearWork, machine: Machine) -> dict[str, object]:
    sets = [work.tensors("cuda", seed) for seed in range(set_count(work.bytes))]
    ours = launcher(Operator("DFlashBlockLinear", {}, machine.load), sets[0])
    ours(sets[0])
    check_linear(work, sets[0])
    operations = work.operations if work.tokens >= _PROMPT else 0
    figures: dict[str, object] = dict(
        machine.figures(seconds(ours, sets), work.bytes, operations)
    )
    for t in sets:
        t["wide"] = dequantized(t, torch.bfloat16)
    add_best_other(figures, {"PyTorch, bfloat16": lambda t: t["x"] @ t["wide"].T}, sets)
    return figures
