"""The benchmark's table of experts: ours, PyTorch's in bfloat16, a short Triton kernel."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from experts import (
    ALPHA,
    EVERYWHERE,
    GPT_OSS,
    LIMIT,
    SHIFT,
    Experts,
    MoeWork,
    Way,
    check_experts,
    in_bfloat16,
    torch_ways,
)
from kernels import Kernels, Tensors
from timing import seconds, set_count

TOKENS = (1, 8, 10, 16, 64, 160)
HEAD = (
    "| experts | tokens | distinct experts | MB touched | µs | % of copy bandwidth | PyTorch from"
    " bfloat16, µs | ratio | which | Triton, µs |"
)
TRITON = "triton"
_MAX_SETS = 64
Ways = dict[
    str, dict[int, Way]
]  # by name, then by the `out` of the set that a way was made for


def launcher(kernels: Kernels, work: MoeWork, t: Tensors) -> Callable[[Tensors], None]:
    """Return a launcher of our kernels for tensors such as `t`."""
    workspace = kernels.moe_workspace(t, work.experts.top_k)
    settings = {"top_k": work.experts.top_k, "limit": LIMIT, "alpha": ALPHA, "shift": SHIFT}
    return lambda given: kernels.moe(given, workspace, **settings)


def other_ways(work: MoeWork, sets: list[Tensors], wide: Tensors) -> Ways:
    """Make PyTorch's ways and Triton's for every set, since the routing differs."""
    made: Ways = {}
    for t in sets:
        for name, way in torch_ways(work, t, wide):
            made.setdefault(name, {})[t["out"].data_ptr()] = way
        if find_spec("triton") is not None:
            from experts_triton import triton_way

            made.setdefault(TRITON, {})[t["out"].data_ptr()] = triton_way(work, t)
    return made


def unusable_reason(name: str, way: Way, t: Tensors) -> str | None:
    """Return why this torch or GPU cannot run a way, None if it can.

    Grouped products and Triton's kernel need particular GPUs. "Expert by expert" always works, so
    its errors are not caught.
    """
    if name == EVERYWHERE:
        return None
    try:
        way(t)
        torch.cuda.synchronize()
    except (RuntimeError, AttributeError, NotImplementedError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def time_of(work: MoeWork, ways: dict[int, Way], sets: list[Tensors]) -> float:
    """Time a way in seconds, after a check of its result on the first set."""
    first = sets[0]
    first["out"].copy_(ways[first["out"].data_ptr()](first))
    check_experts(work, first)
    return seconds(lambda t: ways[t["out"].data_ptr()](t), sets)


def measure(
    kernels: Kernels, work: MoeWork, weights: Tensors, wide: Tensors, bandwidth: float
) -> dict[str, Any]:
    """Return one row of the table.

    The sets share the weights and route differently; together they touch four times the L2 cache.
    """
    first = work.tensors(weights, 0)
    touched = work.bytes(first)
    count = min(max(set_count(touched), 8), _MAX_SETS)
    sets = [first, *(work.tensors(weights, seed) for seed in range(1, count))]
    ours = launcher(kernels, work, first)
    for t in (sets[0], sets[-1]):
        ours(t)
        check_experts(work, t)
    time, touched = seconds(ours, sets), sum(work.bytes(t) for t in sets) / len(sets)
    others = other_ways(work, sets, wide)
    reasons = {
        name: unusable_reason(name, ways[first["out"].data_ptr()], first)
        for name, ways in others.items()
    }
    times = {
        name: time_of(work, ways, sets)
        for name, ways in others.items()
        if reasons[name] is None
    }
    by_torch = {name: found for name, found in times.items() if name != TRITON}
    best = min(by_torch, key=lambda name: by_torch[name])
    return {
        "experts": work.experts.name,
        "tokens": work.tokens,
        "distinct_experts": sum(work.distinct(t) for t in sets) / len(sets),
        "megabytes": touched / 1e6,
        "microseconds": time * 1e6,
        "share_of_copy_bandwidth": touched / time / bandwidth,
        "torch_microseconds": by_torch[best] * 1e6,
        "ratio_to_torch": by_torch[best] / time,
        "torch_way": best,
        "triton_microseconds": times[TRITON] * 1e6 if TRITON in times else None,
        "left_out": {name: reason for name, reason in reasons.items() if reason is not None},
    }


def line(row: dict[str, Any]) -> str:
    """Format a row of the table."""
    triton = "-" if row["triton_microseconds"] is None else f"{row['triton_microseconds']:.1f}"
    return (
        f"| {row['experts']} | {row['tokens']} | {row['distinct_experts']:.1f} |"
        f" {row['megabytes']:.0f} | {row['microseconds']:.1f} |"
        f" {100 * row['share_of_copy_bandwidth']:.0f} | {row['torch_microseconds']:.1f} |"
        f" {row['ratio_to_torch']:.2f} | {row['torch_way']} | {triton} |"
    )


def run_experts(
    kernels: Kernels, bandwidth: float, say: Callable[[str], None], experts: Experts = GPT_OSS
) -> list[dict[str, Any]]:
    """Print the table line by line, and return its rows."""
    say(f"\n{HEAD}\n|---|---|---|---|---|---|---|---|---|---|")
    weights, found = MoeWork(experts, 1).weights("cuda"), []
    wide = in_bfloat16(weights)
    for tokens in TOKENS:
        found.append(measure(kernels, MoeWork(experts, tokens), weights, wide, bandwidth))
        say(line(found[-1]))
        torch.cuda.empty_cache()
    for row in found:
        for name, reason in row["left_out"].items():
            say(f"\nLeft out for {row['tokens']} tokens: {name}, {reason}")
    return found
