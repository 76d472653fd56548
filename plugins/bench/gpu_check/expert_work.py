"""The timed DFlashMoE: MXFP4 experts of gpt-oss, the expected result, and PyTorch's ways."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch.nn.functional import linear

from plugins.bench.gpu_check.torch_operators import Tensors, check_rows

E2M1 = (0, 0.5, 1, 1.5, 2, 3, 4, 6)
LIMIT, ALPHA, SHIFT = 7.0, 1.702, 1.0


@dataclass(frozen=True)
class Experts:
    """The MXFP4 experts of one layer; rows of gate and up alternate."""

    name: str
    hidden: int
    inner: int
    count: int
    top_k: int

    @property
    def bytes(self) -> int:
        """Return the bytes of one expert: 17 for every 32 weights, and its biases."""
        return 17 * 3 * self.inner * self.hidden // 32 + 2 * (2 * self.inner + self.hidden)


GPT_OSS = Experts("gpt-oss-120b", 2880, 2880, 128, 4)


@dataclass(frozen=True)
class MoeWork:
    """`tokens` tokens, routed by random logits."""

    experts: Experts
    tokens: int

    @property
    def fields(self) -> dict[str, int | float]:
        """Return the fields of its plugin."""
        made: dict[str, int | float] = {"top_k": self.experts.top_k, "normalize": 1}
        made |= {"interleaved": 1, "weight_format": 1, "block_rows": 0}
        return made | {"limit": LIMIT, "alpha": ALPHA, "shift": SHIFT}

    @property
    def operations(self) -> int:
        """Return the multiplications and additions of the chosen experts' products."""
        e = self.experts
        return 2 * self.tokens * e.top_k * 3 * e.hidden * e.inner

    def weights(self, device: str, seed: int = 0) -> Tensors:
        """Make random packed weights; the scales keep a row's sum near 1."""
        generator = torch.Generator(device=device).manual_seed(seed)
        e, made = self.experts, {}
        for name, rows, columns in (
            ("gate_up", 2 * e.inner, e.hidden),
            ("down", e.hidden, e.inner),
        ):
            made[name] = torch.randint(
                -(2**31),
                2**31,
                (e.count, rows, columns // 8),
                dtype=torch.int32,
                device=device,
                generator=generator,
            )
            typical = 126 - round(math.log2(columns) / 2)
            scales = torch.randint(
                typical - 2,
                typical + 1,
                (e.count, rows * columns // 32),
                dtype=torch.uint8,
                device=device,
                generator=generator,
            )
            made[f"{name}_scale"] = scales.view(torch.int32)
            bias = torch.randn((e.count, rows), device=device, generator=generator)
            made[f"{name}_bias"] = (0.1 * bias).bfloat16()
        return made

    def tensors(self, weights: Tensors, seed: int) -> Tensors:
        """Make tokens and router logits beside the weights; the result is full of NaN."""
        device = weights["gate_up"].device
        generator = torch.Generator(device=device).manual_seed(1000 + seed)
        x = torch.randn(
            (self.tokens, self.experts.hidden), device=device, generator=generator
        ).bfloat16()
        logits = torch.randn(
            (self.tokens, self.experts.count), device=device, generator=generator
        )
        return {**weights, "x": x, "router_logits": logits, "out": torch.full_like(x, math.nan)}

    def chosen(self, t: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
        """Return each token's experts and their routing weights, both [N, k]."""
        values, index = t["router_logits"].topk(self.experts.top_k, dim=-1)
        return index, values.softmax(-1)

    def distinct(self, t: Tensors) -> int:
        """Return how many different experts the tokens are routed to."""
        return int(self.chosen(t)[0].unique().numel())

    def bytes(self, t: Tensors) -> int:
        """Return the least bytes to move: the chosen experts, the tokens, their logits, and out."""
        tokens = self.tokens * (4 * self.experts.hidden + 4 * self.experts.count)
        return self.distinct(t) * self.experts.bytes + tokens


def dequantize(t: Tensors, name: str, expert: int, dtype: torch.dtype) -> torch.Tensor:
    """Return the weights [rows, columns] of one expert in `dtype`."""
    packed = t[name][expert].view(torch.uint8)
    nibbles = torch.stack([packed & 15, packed >> 4], -1).flatten(-2).long()
    table = torch.tensor(
        [*E2M1, *(-x for x in E2M1)], dtype=torch.float64, device=packed.device
    )
    scales = t[f"{name}_scale"][expert].view(torch.uint8).view(packed.shape[0], -1)
    worth = torch.exp2(scales.double() - 127).repeat_interleave(32, -1)
    return (table[nibbles] * worth).to(dtype)


def in_bfloat16(t: Tensors) -> Tensors:
    """Return all experts' weights in bfloat16, as PyTorch multiplies them."""
    wide = {}
    for name in ("gate_up", "down"):
        experts = [dequantize(t, name, e, torch.bfloat16) for e in range(len(t[name]))]
        wide[name] = torch.stack(experts)
    return wide


def one_expert(
    t: Tensors, gate_up: torch.Tensor, down: torch.Tensor, expert: int, x: torch.Tensor
) -> torch.Tensor:
    """Apply one expert to rows of x, in their type."""
    both = linear(x, gate_up, t["gate_up_bias"][expert].to(x.dtype))
    gate, up = both[:, ::2].clamp(max=LIMIT), both[:, 1::2].clamp(-LIMIT, LIMIT)
    return linear(
        (up + SHIFT) * gate * torch.sigmoid(ALPHA * gate),
        down,
        t["down_bias"][expert].to(x.dtype),
    )


def expected(work: MoeWork, t: Tensors, dtype: torch.dtype) -> torch.Tensor:
    """Compute out with plain operations in `dtype`; the result is float64."""
    index, share = work.chosen(t)
    out = torch.zeros_like(t["x"], dtype=torch.float64)
    for expert in index.unique().tolist():
        token, choice = (index == expert).nonzero(as_tuple=True)
        matrices = (dequantize(t, name, expert, dtype) for name in ("gate_up", "down"))
        result = one_expert(t, *matrices, expert, t["x"][token].to(dtype))
        out.index_add_(0, token, result.double() * share[token, choice].double()[:, None])
    return out if dtype == torch.float64 else out.to(dtype).double()


def check_experts(work: MoeWork, t: Tensors) -> None:
    """Raise WrongResultError if a row of out is too far from float64's (`check_rows`)."""
    exact, eager = (expected(work, t, dtype) for dtype in (torch.float64, torch.bfloat16))
    check_rows(str(work), t["out"], exact, eager)


Way = Callable[[Tensors], torch.Tensor]
EVERYWHERE = "expert by expert"  # every PyTorch can do it


def torch_ways(work: MoeWork, t: Tensors, wide: Tensors) -> Iterator[tuple[str, Way]]:
    """Ways of PyTorch's to do the same from bfloat16 experts; each gives out, or raises.

    They may be captured for `t` only: which experts are chosen, the host has read before, which is
    in their favour.
    """
    index, share = work.chosen(t)
    experts = index.unique().tolist()
    places = [(index == expert).nonzero(as_tuple=True) for expert in experts]

    def sequentially(given: Tensors) -> torch.Tensor:
        out = torch.zeros_like(given["x"], dtype=torch.float32)
        for expert, (token, choice) in zip(experts, places, strict=True):
            result = one_expert(
                given, wide["gate_up"][expert], wide["down"][expert], expert, given["x"][token]
            )
            out.index_add_(0, token, result.float() * share[token, choice][:, None])
        return out.to(given["x"].dtype)

    order = index.flatten().argsort(stable=True)
    counts = torch.bincount(index.flatten(), minlength=work.experts.count)
    ends, of = counts.cumsum(0).to(torch.int32), index.flatten()[order]

    def grouped(given: Tensors) -> torch.Tensor:
        x = given["x"][order // work.experts.top_k]
        both = torch._grouped_mm(x, wide["gate_up"].mT, offs=ends) + given["gate_up_bias"][of]
        gate, up = both[:, ::2].clamp(max=LIMIT), both[:, 1::2].clamp(-LIMIT, LIMIT)
        inner = ((up + SHIFT) * gate * torch.sigmoid(ALPHA * gate)).contiguous()
        result = torch._grouped_mm(inner, wide["down"].mT, offs=ends) + given["down_bias"][of]
        by_choice = torch.empty_like(result, dtype=torch.float32)
        by_choice[order] = result.float()
        return (
            (by_choice.view(work.tokens, -1, work.experts.hidden) * share[..., None])
            .sum(1)
            .to(given["x"].dtype)
        )

    yield EVERYWHERE, sequentially
    yield "grouped products", grouped
