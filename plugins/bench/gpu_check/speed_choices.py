"""Times of what chooses tokens: acceptance of a block, and the walk over candidates."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from plugins.bench.gpu_check.operators import Operator
from plugins.bench.gpu_check.rows import Check
from plugins.bench.gpu_check.timing import seconds, set_count
from plugins.bench.gpu_check.torch_operators import (
    Machine,
    Tensors,
    WrongResultError,
    add_best_other,
    launcher,
)
from trtllm_dflash.options.row_sampling import SAMPLING_INPUTS

VOCAB = 151_936
SAMPLING: dict[str, dict[str, float]] = {
    "greedy": {},
    "temperature 1": {"temperature": 1.0},
    "top_k 50, top_p 0.9": {"temperature": 0.7, "top_k": 50, "top_p": 0.9},
}
_BLOCKS = ((1, 8), (1, 16), (32, 16))  # batch, rows
_SELECT_VOCAB, _RANK, _TOP_K = 248_320, 256, 16  # of Qwen3.8-27B's drafter


def accept_tensors(
    batch: int, rows: int, vocab: int, sampling: Mapping[str, float], seed: int, device: str
) -> Tensors:
    """Make inputs of accept whose drafts are the argmax: greedy accepts them all."""
    generator = torch.Generator(device=device).manual_seed(seed)
    logits = 4 * torch.randn((batch, rows, vocab), device=device, generator=generator)
    drafts = logits.argmax(-1)[:, : rows - 1]

    def one(value: float, dtype: torch.dtype) -> torch.Tensor:
        return torch.full((batch,), value, dtype=dtype, device=device)

    settings = {
        row.name: one(sampling.get(row.name, row.default), getattr(torch, row.dtype))
        for row in SAMPLING_INPUTS
    }
    return {
        "logits": logits,
        "input_ids": torch.cat([drafts[:, :1], drafts], 1).contiguous(),
        "num_known": one(1, torch.int32),
        "past_len": one(100, torch.int32),
        **settings,
        "noise_key": torch.randint(2**31, (batch, 4), device=device, generator=generator),
        "adjusted": logits,  # counts in no slot: none asks for it
        "adjusts": one(0, torch.int32),
        "new_ids": torch.full((batch, rows), -7, dtype=torch.int64, device=device),
        "num_new": one(-7, torch.int32),
        "next_len": one(-7, torch.int32),
        "bonus": torch.full((batch, 1), -7, dtype=torch.int64, device=device),
    }


def check_accept(t: Tensors, *, greedy: bool) -> None:
    """Raise WrongResultError unless the result of accept is plausible.

    Greedy sampling accepts every draft. A sampled token is in the vocabulary, and the counts agree.
    """
    rows, vocab = t["logits"].shape[1:]
    for slot in range(len(t["logits"])):
        new, count = t["new_ids"][slot].tolist(), int(t["num_new"][slot])
        holds = (
            1 <= count <= rows
            and all(0 <= token < vocab for token in new[:count])
            and new[count:] == [-1] * (rows - count)
        )
        ends = int(t["next_len"][slot]), int(t["bonus"][slot])
        holds = holds and ends == (100 + count, new[count - 1])
        if greedy:
            holds = holds and new == t["logits"][slot].argmax(-1).tolist()
        if not holds:
            raise WrongResultError(
                f"accept of {rows} rows gives {new}, {count} new in slot {slot}"
            )


def time_accept(check: Check) -> None:
    """Time acceptance, a row for each block and sampling; torch's argmax is beside greedy."""
    machine = Machine(check.folder)
    vocab = 3001 if check.small else VOCAB
    for batch, rows in _BLOCKS[:1] if check.small else _BLOCKS:
        for name, sampling in SAMPLING.items():
            with check.case(f"{batch} × {rows} rows of {vocab}, {name}") as figures:
                logits_bytes = 4 * batch * rows * vocab
                sets = [
                    accept_tensors(batch, rows, vocab, sampling, seed, "cuda")
                    for seed in range(set_count(logits_bytes))
                ]
                ours = launcher(Operator("DFlashAccept", {}, machine.load), sets[0])
                ours(sets[0])
                check_accept(sets[0], greedy=name == "greedy")
                figures |= machine.figures(seconds(ours, sets), logits_bytes)
                if name == "greedy":
                    ways = {"PyTorch, argmax alone": lambda t: t["logits"].argmax(-1)}
                    add_best_other(figures, ways, sets)
        torch.cuda.empty_cache()


def select_tensors(batch: int, rows: int, vocab: int, seed: int, device: str) -> Tensors:
    """Make inputs of a walk over candidates."""
    generator = torch.Generator(device=device).manual_seed(seed)

    def random(*size: int) -> torch.Tensor:
        return torch.randn(size, device=device, generator=generator)

    return {
        "logits": random(batch, rows, vocab),
        "hidden": random(batch, rows, _RANK).bfloat16(),
        "anchor_row": random(batch, _RANK).bfloat16(),
        "predecessor": random(vocab, _RANK).bfloat16(),
        "successor": random(vocab, _RANK).bfloat16(),
        "places": torch.full((batch, rows), -7, dtype=torch.int64, device=device),
    }


def select_by_rows(t: Tensors) -> torch.Tensor:
    """Return the places in float64, row after row."""
    before, places = t["anchor_row"].double(), []
    for row in range(t["logits"].shape[1]):
        logits, index = t["logits"][:, row].double().topk(_TOP_K, -1)
        mixed = before * t["hidden"][:, row].double()
        pairs = (t["successor"][index].double() @ mixed[..., None])[..., 0]
        best = (logits + pairs).argmax(-1, keepdim=True)
        places.append(index.gather(1, best)[:, 0])
        before = t["predecessor"][places[-1]].double()
    return torch.stack(places, 1)


def time_select(check: Check) -> None:
    """Time the walk over candidates, a row for each batch; torch's top-k is beside it."""
    machine = Machine(check.folder)
    vocab = 3001 if check.small else _SELECT_VOCAB
    for batch in (1,) if check.small else (1, 8):
        with check.case(f"{batch} × 7 rows of {vocab}, top_k {_TOP_K}") as figures:
            moved = 4 * batch * 7 * vocab
            sets = [
                select_tensors(batch, 7, vocab, seed, "cuda")
                for seed in range(set_count(moved))
            ]
            operator = Operator("DFlashSelect", {"top_k": _TOP_K}, machine.load)
            ours = launcher(operator, sets[0])
            ours(sets[0])
            wanted = select_by_rows(sets[0])
            if not torch.equal(sets[0]["places"], wanted):
                raise WrongResultError(f"places {sets[0]['places']}, expected {wanted}")
            figures |= machine.figures(seconds(ours, sets), moved)
            ways = {"PyTorch, topk alone": lambda t: t["logits"].topk(_TOP_K, -1)}
            add_best_other(figures, ways, sets)
        torch.cuda.empty_cache()
