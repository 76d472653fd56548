"""When tokens of the GPU path are those of the CPU engine that rounds alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trtllm_dflash.runtime.engine import Engine

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


def check_greedy(
    twin: Engine, prompts: Sequence[list[int]], tokens: Sequence[list[int]], near: Nearness
) -> None:
    """Check greedy answers against the twin's own: they part only at near ties, and few do."""
    expected = [
        answer.token_ids
        for answer in twin.generate(
            list(prompts), max_tokens=max(map(len, tokens)), stop_token_ids=[]
        )
    ]
    parted = 0
    for prompt, ours, theirs in zip(prompts, tokens, expected, strict=True):
        place = differing(ours, theirs[: len(ours)])
        if place is None:
            continue
        parted += 1
        history = [*prompt, *theirs[:place]]
        answer = twin.generate([history], max_tokens=1, stop_token_ids=[], logprobs=_TOP)[0]
        assert answer.logprobs is not None
        top = dict(answer.logprobs[0].top)
        apart = max(top.values()) - top.get(ours[place], -np.inf)
        assert apart < near.logprob, (
            f"{apart:.3f} apart, token {place} of the answer to {prompt} is {ours[place]}, expected"
            f" {theirs[place]}: {ours} instead of {theirs}"
        )
    assert parted <= near.answers, f"{parted} answers part from {expected}: {tokens}"
