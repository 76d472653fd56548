"""DFlashMoE's two products as a short kernel in the Triton language, on the same weights.

Assignments are sorted by expert and cut into tiles of 16 by torch; a program multiplies one tile
with a block of an expert's rows. E2M1 codes are expanded in arithmetic, times their scales, to the
type of x; even and odd columns are multiplied on their own. Routing, activation and the sum over
choices are torch's.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from plugins.bench.gpu_check.expert_work import ALPHA, LIMIT, SHIFT, MoeWork
from plugins.bench.gpu_check.torch_operators import Tensors

TILE, ROWS, COLUMNS = 16, 64, 128  # assignments, rows of weights, and columns at once


@triton.jit
def multiply_kernel(
    x, codes, scales, bias, out, place_of, expert_of, rows, columns: tl.constexpr,
    tile: tl.constexpr, row_block: tl.constexpr, column_block: tl.constexpr,
):  # fmt: skip
    """out[p] = W[expert] x[p] + bias[expert] for the places p of one tile, and a block of rows."""
    expert = tl.load(expert_of + tl.program_id(1)).to(tl.int64)
    place = tl.load(place_of + tl.program_id(1) * tile + tl.arange(0, tile))
    row = tl.program_id(0) * row_block + tl.arange(0, row_block)
    of = expert * rows + row
    half: tl.constexpr = column_block // 2
    total = tl.zeros((tile, row_block), tl.float32)
    for start in range(0, columns, column_block):
        byte = start // 2 + tl.arange(0, half)
        inside = byte < columns // 2
        kept = (row < rows)[:, None] & inside[None, :]
        pair = tl.load(codes + of[:, None] * (columns // 2) + byte[None, :], kept, other=0).to(
            tl.int32
        )
        scale = tl.load(
            scales + of[:, None] * (columns // 32) + byte[None, :] // 16, kept, other=0
        )
        worth = tl.exp2(scale.to(tl.float32) - 127.0)
        token = (place >= 0)[:, None] & inside[None, :]
        at = x + place[:, None].to(tl.int64) * columns + 2 * byte[None, :]
        for odd in tl.static_range(2):
            code = (pair >> (4 * odd)) & 15
            exponent = (code >> 1) & 3
            size = tl.where(
                exponent == 0,
                (code & 1) * 0.5,
                (1.0 + (code & 1) * 0.5) * tl.exp2(exponent - 1.0),
            )
            weight = (tl.where(code >= 8, -size, size) * worth).to(x.dtype.element_ty)
            number = tl.load(at + odd, token, other=0.0)
            total = tl.dot(number, tl.trans(weight), total)
    total += tl.load(bias + of, row < rows, other=0.0).to(tl.float32)[None, :]
    to = out + place[:, None].to(tl.int64) * rows + row[None, :]
    tl.store(to, total.to(out.dtype.element_ty), (place >= 0)[:, None] & (row < rows)[None, :])


def tiles(index: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the places of each tile of 16 (-1: none) and its expert.

    `index` [N, k] assigns tokens to `count` experts.
    """
    places, experts = [], []
    flat = index.flatten()
    for expert in range(count):
        mine = (flat == expert).nonzero().flatten()
        for some in mine.split(TILE):
            places.append(torch.nn.functional.pad(some, (0, TILE - len(some)), value=-1))
            experts.append(expert)
    return torch.stack(places).int(), torch.tensor(
        experts, dtype=torch.int32, device=index.device
    )


def multiply(
    x: torch.Tensor, t: Tensors, name: str, cut: tuple[torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    """Multiply x [A, columns] by each assignment's expert; the result is [A, rows]."""
    rows, columns = t[f"{name}_bias"].shape[1], x.shape[1]
    out = torch.empty((len(x), rows), dtype=x.dtype, device=x.device)
    codes, scales = (t[key].view(torch.uint8) for key in (name, f"{name}_scale"))
    grid = (triton.cdiv(rows, ROWS), len(cut[1]))
    multiply_kernel[grid](
        x,
        codes,
        scales,
        t[f"{name}_bias"],
        out,
        *cut,
        rows,
        columns,
        tile=TILE,
        row_block=ROWS,
        column_block=COLUMNS,
    )
    return out


def triton_way(work: MoeWork, t: Tensors):  # type: ignore[no-untyped-def]
    """Return the whole operator for `t`; the host has read the routing beforehand."""
    index, share = work.chosen(t)
    cut = tiles(index, work.experts.count)

    def way(given: Tensors) -> torch.Tensor:
        x = given["x"].repeat_interleave(work.experts.top_k, 0)
        both = multiply(x, given, "gate_up", cut).float()
        gate, up = both[:, ::2].clamp(max=LIMIT), both[:, 1::2].clamp(-LIMIT, LIMIT)
        inner = ((up + SHIFT) * gate * torch.sigmoid(ALPHA * gate)).to(x.dtype)
        result = (
            multiply(inner, given, "down", cut)
            .float()
            .view(work.tokens, work.experts.top_k, -1)
        )
        return (result * share[..., None]).sum(1).to(x.dtype)

    return way
