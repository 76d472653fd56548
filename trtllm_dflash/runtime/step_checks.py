"""Checks of a step's results before any of them is used.

They are numbers from a device. A kernel that did not run, an output that is bound elsewhere or a
faulty driver show here first. All rows are checked before a token of any is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from trtllm_dflash.errors import EngineError
from trtllm_dflash.options.draft_sources import NO_MATCH, TALLY_SIZE
from trtllm_dflash.runtime.sessions.base import Int32, StepResult

NOT_FINITE = -1  # the id that a step gives where its logits decide nothing
_ADVICE = (
    "The engine, its driver or its GPU is at fault, and nothing of this step was used. Try"
    " DFLASH_CUDA_GRAPH=0 if it runs on a GPU, then build the engine again; dflash-trt doctor"
    " shows the driver."
)


class ExpectedRow(NamedTuple):
    """What is known of a row before its step is collected."""

    slot: int
    past_len: int  # positions that its caches hold once its decided tokens are in, but the last
    is_used: bool  # False: its tokens are of no use, so they are not looked at


def check_step(
    result: StepResult, rows: Sequence[ExpectedRow], *, columns: int, vocab_size: int, step: str
) -> list[EngineError | None]:
    """Check what a step gave for `rows`; `step` names it in errors, as "decode step 7".

    Returns an error for each row whose own logits were not finite, None for the others.

    Raises:
        EngineError: if a number cannot be right, so that no row can be believed.
    """
    _check_shape("new_ids", result.new_ids, (len(rows), columns), step)
    _check_shape("num_new", result.num_new, (len(rows),), step)
    for name in ("next_len", "next_state_len"):
        lengths = getattr(result, name)
        if lengths is not None:
            _check_shape(name, lengths, (len(rows),), step)
    _check_tally(result.next_tally, len(rows), step)
    errors: list[EngineError | None] = []
    for index, row in enumerate(rows):
        where = f"slot {row.slot}, {step}"
        num_new = int(result.num_new[index])
        errors.append(None)
        if not row.is_used:
            continue
        if not 1 <= num_new <= columns:
            raise EngineError(
                f"{where}: num_new is {num_new}, expected 1 to {columns}. {_ADVICE}"
            )
        for name, expected in (
            ("next_len", row.past_len + num_new),
            ("next_state_len", row.past_len + 1),  # all decided tokens of the step, no drafts
        ):
            _check_length(name, getattr(result, name), index, expected, where)
        ids = result.new_ids[index, :num_new]
        bad = np.flatnonzero((ids < 0) | (ids >= vocab_size))
        if not len(bad):
            continue
        first = int(ids[bad[0]])
        if first != NOT_FINITE:
            raise EngineError(
                f"{where}: token {bad[0] + 1} of {num_new} is the id {first}, and the vocabulary"
                f" has 0 to {vocab_size - 1}. {_ADVICE}"
            )
        errors[-1] = EngineError(
            f"{where}: token {bad[0] + 1} of {num_new} is the id {NOT_FINITE}: its logits are not"
            " finite (NaN or infinity), so that there is no next token. Weights, their scales or a"
            " cache have overflowed: look whether the checkpoint is intact, or build from another"
            " quantization."
        )
    return errors


def _check_shape(name: str, array: np.ndarray, expected: tuple[int, ...], step: str) -> None:
    if array.shape != expected:
        found = list(array.shape)
        raise EngineError(
            f"{step}: {name} has the shape {found}, expected {list(expected)}. {_ADVICE}"
        )


def _check_tally(tally: Int32 | None, count: int, step: str) -> None:
    """Check the classes of the next blocks; a slot's means are its own affair."""
    if tally is None:
        return
    _check_shape("next_tally", tally, (count, TALLY_SIZE), step)
    wrong = tally[(tally[:, 0] < 0) | (tally[:, 0] > NO_MATCH), 0]
    if len(wrong):
        raise EngineError(
            f"{step}: next_tally has a block of class {wrong[0]}, expected 0 to"
            f" {NO_MATCH}. {_ADVICE}"
        )


def _check_length(
    name: str, lengths: Int32 | None, index: int, expected: int, where: str
) -> None:
    if lengths is not None and int(lengths[index]) != expected:
        raise EngineError(
            f"{where}: {name} is {int(lengths[index])}, expected {expected}. {_ADVICE}"
        )
