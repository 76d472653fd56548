"""A session driven step by step, with drafts that are right to a known place.

Random drafters are hardly ever right, so their drafts are replaced before a step verifies them.
What the drafter itself gave is kept, since no token shows it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trtllm_dflash.runtime.sessions.base import SlotSampling

Tokens = list[list[int]]


@dataclass(frozen=True)
class Trace:
    """New tokens by slot, and the drafts of each slot behind each of its steps."""

    tokens: Tokens
    drafts: list[list[list[int]]] = field(default_factory=list)
    accepted: int = 0  # drafts in all


def trace(
    session: Any, next_ids: Callable[[], np.ndarray], prompts: Tokens, answers: Tokens
) -> Trace:
    """Prefill each prompt in a slot, and decode all of them with drafts of `answers`.

    `next_ids` returns the session's own array [slots, block]. In each step another number of the
    drafts is right. It ends where the drafts of an answer would.
    """
    config = session._config
    block = config.block_size
    tokens: Tokens = []
    drafts: list[list[list[int]]] = []
    for slot, prompt in enumerate(prompts):
        session.open_slot(slot, SlotSampling(uniforms=np.zeros(0, np.float32)))
        for begin in range(0, len(prompt), config.max_num_tokens):
            session.prefill(slot, np.array(prompt[begin : begin + config.max_num_tokens]))
            result = session.collect()
        tokens.append(result.new_ids[0, : result.num_new[0]].tolist())
        drafts.append([next_ids()[slot, 1:].tolist()])
    accepted = step = 0
    while all(
        len(done) + block <= len(answer) for done, answer in zip(tokens, answers, strict=True)
    ):
        for slot, (done, answer) in enumerate(zip(tokens, answers, strict=True)):
            right = answer[len(done) : len(done) + block - 1]
            next_ids()[slot, 1:] = _spoiled(right, (step + slot) % block)
        session.decode(len(prompts), block)
        result = session.collect()
        for slot, count in enumerate(result.num_new):
            tokens[slot] += result.new_ids[slot, :count].tolist()
            drafts[slot].append(next_ids()[slot, 1:].tolist())
            accepted += int(count) - 1
        step += 1
    return Trace(tokens, drafts, accepted)


def _spoiled(right: Sequence[int], place: int) -> list[int]:
    """Return drafts of which the one at `place` is wrong, if there is one."""
    made = list(right)
    if place < len(made):
        made[place] = 1 + made[place] % 2  # of the first ids, which all vocabularies have
    return made


def same_share(ours: Trace, theirs: Trace) -> float:
    """Return which share of the drafts is the same; numbers of steps may differ by a few."""
    same = []
    for slot, other in zip(ours.drafts, theirs.drafts, strict=True):
        for step, twin in zip(slot, other, strict=False):
            same += [a == b for a, b in zip(step, twin, strict=True)]
    return float(np.mean(same))
