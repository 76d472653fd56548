"""Times of linear attention: ours, and PyTorch row after row."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from plugins.bench.gpu_check.delta_work import (
    DELTA_HEADS,
    DeltaHeads,
    DeltaWork,
    check_delta,
    delta_by_rows,
)
from plugins.bench.gpu_check.operators import Operator
from plugins.bench.gpu_check.rows import Check
from plugins.bench.gpu_check.timing import seconds, set_count
from plugins.bench.gpu_check.torch_operators import Machine, add_best_other, launcher

_MOST_TORCH_ROWS = 64  # PyTorch takes a dozen launches a row


def works(*, small: bool) -> Iterator[DeltaWork]:
    """Yield blocks of 16 whose drafts were all accepted, or none, and a piece of a prompt."""
    if small:
        yield DeltaWork(DeltaHeads("small", 1, 2), rows=4, known=1, open_rows=3, batch=2)
        return
    for heads in DELTA_HEADS:
        for batch in (1, 8, 32):
            for open_rows in (0, 15):
                yield DeltaWork(heads, rows=16, known=1, open_rows=open_rows, batch=batch)
        yield DeltaWork(heads, rows=512, known=512, open_rows=0, batch=1)


def time_delta(check: Check) -> None:
    """Time steps of linear attention, a row for each."""
    machine = Machine(check.folder)
    for work in works(small=check.small):
        with check.case(str(work)) as figures:
            sets = [work.tensors("cuda", seed) for seed in range(set_count(work.bytes))]
            ours = launcher(Operator("DFlashGatedDelta", work.fields, machine.load), sets[0])
            wanted = delta_by_rows(work, sets[0], torch.float64)
            ours(sets[0])
            check_delta(work, wanted, sets[0])
            figures |= machine.figures(seconds(ours, sets), work.bytes)
            if work.rows <= _MOST_TORCH_ROWS:

                def by_rows(t: dict[str, torch.Tensor], work: DeltaWork = work) -> object:
                    return delta_by_rows(work, t, torch.float32)

                add_best_other(figures, {"PyTorch, row by row": by_rows}, sets)
        torch.cuda.empty_cache()
