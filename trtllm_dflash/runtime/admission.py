"""Which of the requests that wait goes first."""

from __future__ import annotations

from collections.abc import Iterable

from trtllm_dflash.runtime.request import Request


def priority_of(request: Request) -> int:
    """Return what requests that wait are sorted by, the smallest first."""
    return request.priority


def may_overtake(request: Request, prefilling: Iterable[Request]) -> bool:
    """Tell whether a prompt is urgent or short enough to go before those that run.

    However many of its own priority overtake a prompt, it waits for no more tokens than it has
    itself.
    """
    length = request.num_to_prefill
    for other in prefilling:
        if request.priority < other.priority:
            continue
        if request.priority > other.priority or length >= other.num_to_prefill:
            return False
        if length + other.num_overtaken > len(other.input_ids):
            return False
    return True
