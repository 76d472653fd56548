"""When tokens of the GPU path are those of the CPU engine that rounds alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.stand_in.expected import twin_of

_TOP = 20


@dataclass(frozen=True)
class Nearness:
    """How far apart two tokens may be that come in either order, and in how many answers.

    Attention's kernels sum in another order, and keep probabilities in bfloat16. Where activations
    are rounded to FP8, what differs becomes steps of that format, in all that lies behind. Most
    tokens are further apart, by units.
    """

    logprob: float
    answers: int


def differing(tokens: Sequence[int], expected: Sequence[int]) -> int | None:
    """Return the first place at which tokens differ, None if they do not."""
    for place, (ours, theirs) in enumerate(zip(tokens, expected, strict=False)):
        if ours != theirs:
            return place
    return None if len(tokens) == len(expected) else min(len(tokens), len(expected))


def parted(
    twin: Path,
    prompts: Sequence[list[int]],
    tokens: Sequence[list[int]],
    expected: Sequence[list[int]],
    near: Nearness,
) -> list[int]:
    """Return which answers part from the twin's; they may do so at near ties, and few may."""
    found = []
    for index, (prompt, ours, theirs) in enumerate(zip(prompts, tokens, expected, strict=True)):
        place = differing(ours, theirs[: len(ours)])
        if place is None:
            continue
        found.append(index)
        assert place < len(ours), f"{ours} is a part of {theirs}"
        apart = _apart(twin, [*prompt, *theirs[:place]], ours[place])
        assert apart < near.logprob, (
            f"{apart:.3f} apart, token {place} of the answer to {prompt} is {ours[place]}, expected"
            f" {theirs[place]}: {ours} instead of {theirs}"
        )
    assert len(found) <= near.answers, f"{found} part from {expected}: {tokens}"
    return found


def _apart(twin: Path, history: list[int], token: int) -> float:
    """Return how far behind the twin's own next token another one is."""
    engine = twin_of(twin)
    answer = engine.generate([history], max_tokens=1, stop_token_ids=[], logprobs=_TOP)[0]
    assert answer.logprobs is not None
    top = dict(answer.logprobs[0].top)
    return float(max(top.values()) - top.get(token, -np.inf))
