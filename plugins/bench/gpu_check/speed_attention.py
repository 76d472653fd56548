"""Times of attention: blocks behind equal and mixed lengths, FP8 caches, drafts and prompts."""

from __future__ import annotations

from itertools import product
from typing import Any

import torch

from plugins.bench.gpu_check.attention_work import (
    GPT_OSS,
    GPT_OSS_WINDOW,
    QWEN3_8B,
    Shape,
    Work,
    check,
    sdpa_ways,
    write_caches,
)
from plugins.bench.gpu_check.operators import Operator
from plugins.bench.gpu_check.other_attention import other_ways
from plugins.bench.gpu_check.rows import Check, SkippedError
from plugins.bench.gpu_check.timing import seconds, set_count
from plugins.bench.gpu_check.torch_operators import (
    Launch,
    Machine,
    Tensors,
    add_best_other,
    launcher,
)

_MEMORY_SHARE = 0.6  # of the free memory, for the sets of one size; the rest is the others'
_MAX_SETS = 1000
_1K, _8K, _32K = 1024, 8192, 32768
_EQUAL = ((1, _1K), (1, _32K), (8, _8K), (32, _1K), (32, _8K))  # batch, keys
_LONG = ((1, _32K), (8, _8K), (32, _8K))


def works(name: str, *, small: bool) -> list[Work]:
    """Return the works of a part by its name."""
    if small:
        return [Work(GPT_OSS, 4, (150, 150))]
    both = QWEN3_8B, GPT_OSS
    few, many = (_32K, *(_1K,) * 31), (*(_32K,) * 4, *(_8K,) * 4, *(_1K,) * 24)
    made = {
        "equal": [
            *(_equal(*each) for each in product(both, _EQUAL)),
            *(_equal(GPT_OSS_WINDOW, (batch, _1K)) for batch in (1, 32)),
        ],
        "mixed": [Work(shape, 16, contexts) for shape, contexts in product(both, (few, many))],
        "fp8": [_equal(*each, fp8=True) for each in product(both, _LONG)],
        "draft": [
            _equal(*each, context_rows=8, causal=False) for each in product(both, _EQUAL[1:4])
        ],
        "prompt": [Work(s, 2048, (keys,)) for s, keys in product(both, (0, 6144, 30720))],
    }
    return made[name]


def _equal(shape: Shape, size: tuple[int, int], **options: Any) -> Work:
    batch, keys = size
    return Work(shape, 16, (keys,) * batch, **options)


def time_attention(check_: Check, name: str) -> None:
    """Time the works of one name, a row for each."""
    machine = Machine(check_.folder)
    for work in works(name, small=check_.small):
        with check_.case(str(work)) as figures:
            figures |= _measure(work, machine)
        torch.cuda.empty_cache()


def _measure(work: Work, machine: Machine) -> dict[str, object]:
    free, _ = torch.cuda.mem_get_info()
    if work.set_bytes > _MEMORY_SHARE * free:
        raise SkippedError(f"{work.set_bytes / 2**30:.1f} GiB do not fit the memory")
    fitting = int(_MEMORY_SHARE * free / work.set_bytes)
    count = min(set_count(work.bytes), fitting, _MAX_SETS)
    sets = [work.tensors("cuda", seed) for seed in range(count)]
    ours = launcher(Operator(work.operator, work.fields, machine.load), sets[0])
    for t in (sets[0], sets[-1]):
        ours(t)
        for slot in {0, len(work.contexts) - 1}:
            check(work, t, slot)
    operations = work.operations if work.rows > 64 else 0
    figures: dict[str, object] = dict(
        machine.figures(seconds(ours, sets), work.bytes, operations)
    )
    add_best_other(figures, ways(work, "cuda", sets[0]), sets)
    return figures


def ways(work: Work, device: str, first: Tensors) -> dict[str, Launch]:
    """Return other systems' ways, each with the step's keys and values written.

    A way's result is checked at its first use.
    """
    found: dict[str, Launch] = {}
    for name, attend in sdpa_ways(work, device):
        found[f"SDPA, {name}"] = _checked(work, _writing(work, attend), first, heads_first=True)
    for name, way in other_ways(work, device):
        found[name] = _checked(work, way, first, heads_first=False)
    return found


def _writing(work: Work, attend: Launch) -> Launch:
    def way(t: Tensors) -> object:
        write_caches(work, t)
        return attend(t)

    return way


def _checked(work: Work, way: Launch, first: Tensors, *, heads_first: bool) -> Launch:
    """Return the way; its result on the first set is compared with float64's before its first
    launch.
    """
    done: list[bool] = []

    def launch(t: Tensors) -> object:
        if not done:
            out = way(first)
            assert isinstance(out, torch.Tensor)
            ours = {**first, "out": out.transpose(1, 2) if heads_first else out}
            for slot in {0, len(work.contexts) - 1}:
                check(work, ours, slot, sinks=False)
            done.append(True)
        return way(t)

    return launch
