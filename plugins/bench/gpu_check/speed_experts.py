"""Times of experts: ours, PyTorch's from bfloat16, and a short Triton kernel's."""

from __future__ import annotations

from importlib.util import find_spec

import torch

from plugins.bench.gpu_check.expert_work import (
    GPT_OSS,
    Experts,
    MoeWork,
    check_experts,
    in_bfloat16,
    torch_ways,
)
from plugins.bench.gpu_check.operators import Operator
from plugins.bench.gpu_check.rows import Check
from plugins.bench.gpu_check.timing import seconds, set_count
from plugins.bench.gpu_check.torch_operators import (
    Launch,
    Machine,
    Tensors,
    add_best_other,
    launcher,
)

TOKENS = (1, 8, 10, 16, 64, 160, 2048)
_PROMPT = 1000  # tokens from which products count, and not bytes
_MAX_SETS = 64


def time_experts(check: Check) -> None:
    """Time gpt-oss's experts in MXFP4, a row for each number of tokens."""
    machine = Machine(check.folder)
    experts = Experts("small", 64, 96, 5, 2) if check.small else GPT_OSS
    weights = MoeWork(experts, 1).weights("cuda")
    wide = in_bfloat16(weights)
    for tokens in TOKENS[:1] if check.small else TOKENS:
        work = MoeWork(experts, tokens)
        with check.case(f"{experts.name}, {tokens} tokens") as figures:
            figures |= _measure(work, machine, weights, wide)
        torch.cuda.empty_cache()


def _measure(
    work: MoeWork, machine: Machine, weights: Tensors, wide: Tensors
) -> dict[str, object]:
    """Return a row's figures.

    The sets share the weights and route differently; together they touch four times the L2 cache.
    """
    first = work.tensors(weights, 0)
    count = min(max(set_count(work.bytes(first)), 8), _MAX_SETS)
    sets = [first, *(work.tensors(weights, seed) for seed in range(1, count))]
    ours = launcher(Operator("DFlashMoE", work.fields, machine.load), first)
    for t in (sets[0], sets[-1]):
        ours(t)
        check_experts(work, t)
    touched = sum(work.bytes(t) for t in sets) / len(sets)
    operations = work.operations if work.tokens >= _PROMPT else 0
    figures: dict[str, object] = dict(machine.figures(seconds(ours, sets), touched, operations))
    figures["experts"] = sum(work.distinct(t) for t in sets) / len(sets)
    add_best_other(figures, other_ways(work, sets, wide), sets)
    return figures


def other_ways(work: MoeWork, sets: list[Tensors], wide: Tensors) -> dict[str, Launch]:
    """Return PyTorch's ways and Triton's, made for every set, since the routing differs."""
    made: dict[str, dict[int, Launch]] = {}
    for t in sets:
        for name, way in torch_ways(work, t, wide):
            made.setdefault(f"PyTorch, {name}", {})[t["out"].data_ptr()] = way
        if find_spec("triton") is not None:
            from plugins.bench.gpu_check.experts_triton import triton_way

            made.setdefault("Triton", {})[t["out"].data_ptr()] = triton_way(work, t)
    return {name: _of_set(work, ways, sets[0]) for name, ways in made.items()}


def _of_set(work: MoeWork, ways: dict[int, Launch], first: Tensors) -> Launch:
    """Return a way for every set; its result on the first is checked before its first launch."""
    done: list[bool] = []

    def launch(t: Tensors) -> object:
        if not done:
            out = ways[first["out"].data_ptr()](first)
            check_experts(work, {**first, "out": out})  # type: ignore[dict-item]
            done.append(True)
        return ways[t["out"].data_ptr()](t)

    return launch
