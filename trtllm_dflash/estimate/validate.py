"""The estimate against published figures: `compare`, and the Markdown table that is in the
repository.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from trtllm_dflash.estimate.clock import Machine
from trtllm_dflash.estimate.constants import CONSTANTS, Constants
from trtllm_dflash.estimate.count import Work
from trtllm_dflash.estimate.known import TARGETS, find_drafter
from trtllm_dflash.estimate.pair import Pair
from trtllm_dflash.estimate.precision import NUMBERS, Precision
from trtllm_dflash.estimate.published import FIGURES, REASONING, TEXTS, Figure


@dataclass(frozen=True)
class Compared:
    """A figure and what the estimate says of it."""

    figure: Figure
    plain: float  # tokens a second of all sequences, prompts included
    speedup: float
    step_seconds: float
    limited_by: str

    @property
    def error(self) -> float:
        """Relative: +0.1 is a prediction that is 10 % too high."""
        return self.speedup / self.figure.speedup - 1

    @property
    def is_outlier(self) -> bool:
        """Whether it is further off than the project aims at."""
        return abs(self.error) > 0.2


def compare(
    figures: Sequence[Figure] = FIGURES, *, constants: Constants = CONSTANTS, answers: float = 1.0
) -> list[Compared]:
    """Predict every figure; `answers` makes all assumed answers longer or shorter."""
    return [_predict(figure, constants, answers) for figure in figures]


def _predict(f: Figure, constants: Constants, answers: float) -> Compared:
    drafter = find_drafter(f.drafter)
    target = TARGETS[drafter.target]
    pair = Pair(target, drafter, f.precision or Precision(experts=target.expert_number))
    machine, text, batch = (
        Machine(f.device, runtime=f.runtime, constants=constants),
        TEXTS[f.text],
        f.concurrency,
    )
    answer = answers * (text.answer + REASONING * f.reasons)
    context = text.prompt + answer / 2
    plain = machine.time(pair.plain(), batch=batch, context=context, drafts=False)
    draft = machine.time(_draft_step(f, pair), batch=batch, context=context, drafts=True)
    prompt = machine.time(
        pair.forward(text.prompt, 1), batch=1, context=text.prompt / 2, drafts=False, prompt=True
    )
    # While a sequence's answer is written, every other one ends and is followed by a prompt, for
    # which all wait.
    waiting = batch * prompt.seconds
    without = answer * plain.seconds + waiting
    drafted = answer / f.tau * draft.seconds + waiting
    return Compared(f, batch * answer / without, without / drafted, draft.seconds, draft.limited_by)


def _draft_step(f: Figure, pair: Pair) -> tuple[Work, ...]:
    if f.eagle is None:
        block = f.block_size or pair.drafter.config.block_size
        return pair.dflash(block, block - 1)
    number = NUMBERS[pair.precision.drafter]
    return pair.forward(f.eagle.tokens + 1, f.eagle.tokens + 1) + f.eagle.works(pair.target, number)


def median_error(compared: Sequence[Compared]) -> float:
    """Of the absolute errors."""
    return median(abs(row.error) for row in compared)


def listed(compared: Sequence[Compared]) -> list[Compared]:
    """The figures that the aim is about."""
    return [row for row in compared if not row.figure.held_out]


def added_later(compared: Sequence[Compared]) -> list[Compared]:
    """Those of them that were compared only after every choice was made."""
    return [row for row in listed(compared) if row.figure.added_later]


def held_out(compared: Sequence[Compared]) -> list[Compared]:
    """The figures that were looked up after every choice was made."""
    return [row for row in compared if row.figure.held_out]


def markdown(compared: Sequence[Compared]) -> str:
    """The table of all figures, and its median errors."""
    lines = [
        (
            "| source | target | drafter | GPU | text | sequences | τ | predicted | published |"
            " error | waits for | note |"
        ),
        "|---|---|---|---|---|--:|--:|--:|--:|--:|---|---|",
        *(_line(row) for row in compared),
        "",
        summary("DFlash and EAGLE-3, the listed figures", listed(compared)),
        summary("of these, DFlash", [row for row in listed(compared) if row.figure.eagle is None]),
        summary(
            "of these, EAGLE-3", [row for row in listed(compared) if row.figure.eagle is not None]
        ),
        summary(
            "of these, compared only after all choices (table 1 at T=1)", added_later(compared)
        ),
        summary("held out (model cards; no choice rests on them)", held_out(compared)),
        _rule_of_thumb(listed(compared)),
    ]
    return "\n".join(lines)


def summary(name: str, rows: Sequence[Compared]) -> str:
    """One line on the errors of some rows."""
    within = sum(not row.is_outlier for row in rows)
    bias = median(row.error for row in rows)
    middle = f"median error {median_error(rows):.1%} ({bias:+.1%} with its sign)"
    return f"- {name}: {middle}, {within} of {len(rows)} within 20 %"


def _rule_of_thumb(rows: Sequence[Compared]) -> str:
    """What the best rule "τ over a number" would do, whose one number is fitted to these very
    speedups.
    """

    def error(divisor: float) -> float:
        return median(abs(row.figure.tau / divisor / row.figure.speedup - 1) for row in rows)

    best = min((1 + i / 100 for i in range(300)), key=error)
    return (
        f"- for comparison, τ / {best:.2f}, fitted to the listed figures: median error"
        f" {error(best):.1%}"
    )


def _line(row: Compared) -> str:
    f = row.figure
    target = find_drafter(f.drafter).target.split("/")[-1]
    ours = f"DFlash, block {f.block_size or find_drafter(f.drafter).config.block_size}"
    how = ours if f.eagle is None else f"EAGLE-3, {f.eagle.tokens} tokens"
    where = f"{f.where}{'' if not f.held_out else ' (held out)'}"
    return (
        f"| {where} | {target} | {how} | {f.gpu} | {f.text} | {f.concurrency} | {f.tau:g} |"
        f" {row.speedup:.2f} | {f.speedup:.2f} | {row.error:+.0%} | {row.limited_by} | {f.note} |"
    )
