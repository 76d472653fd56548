"""The masks and drafts of constrained slots in the steps of a batch.

A constrained slot needs the result of each step before its next one. So no step is launched ahead
while there is one. The others in its batch decide what they would without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from trtllm_dflash.runtime.grammar.constraint import ConstrainedStep
from trtllm_dflash.runtime.request import Request
from trtllm_dflash.runtime.sessions.base import Session, StepResult


def lookahead_of(session: Session, requests: Iterable[Request]) -> int:
    """Return how many steps may be in flight beside the oldest one."""
    constrained = any(request.constraint is not None for request in requests)
    return 0 if constrained else session.lookahead


def constrain_prefill(session: Session, request: Request) -> None:
    """Limit the first token of an answer, which the chunk to come decides."""
    if request.constraint is not None and request.slot is not None:
        step = request.constraint.next_step([], 0)
        session.constrain(request.slot, step.allowed)


def constrain_decode(session: Session, active: Sequence[Request], width: int) -> int:
    """Limit what the constrained slots of a decode step may decide, and return its width.

    Slot i is that of `active[i]`. The step is wider than `width` where a grammar forces more
    tokens, and the request may have so many drafts.
    """
    width = session.step_width(width)
    steps: dict[int, ConstrainedStep] = {}
    for slot, request in enumerate(active):
        if request.constraint is not None and request.finish_reason is None:
            most = request.widths.max_width - 1
            steps[slot] = request.constraint.next_step(request.next_drafts, width - 1, most)
    widest = max((len(step.drafts) + 1 for step in steps.values()), default=0)
    if widest > width:
        width = session.step_width(widest)
    for slot, step in steps.items():
        constraint = active[slot].constraint
        if len(step.drafts) + 1 < width and not step.is_cut and constraint is not None:
            step = constraint.next_step(active[slot].next_drafts, width - 1)
        session.constrain(slot, step.allowed, np.array(step.drafts, np.int64))
    return width


def keep_drafts(request: Request, result: StepResult, row: int) -> None:
    """Keep the drafts of a constrained slot's next block, which its grammar will check."""
    if request.constraint is not None and result.next_ids is not None:
        request.next_drafts = result.next_ids[row, 1:].tolist()
