"""The summary of `dflash-trt run`: tokens a second, τ, and the histogram of accepted lengths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from trtllm_dflash.cli.console import table_console
from trtllm_dflash.runtime.outputs import Generation, Timings, mean

BAR_WIDTH = 40


def print_summary(answers: Sequence[Generation], timings: Timings, *, width: int) -> None:
    """Print the summary on stderr; `width` is the tokens of a slot in a decode step."""
    lengths = [length for answer in answers for length in answer.acceptance_lengths]
    table = Table.grid(padding=(0, 2))
    for name, value in [*_clock_rows(answers, timings), *_acceptance_rows(lengths, width)]:
        table.add_row(name, value)
    table_console(stderr=True).print(Group(Text(), table))


def _clock_rows(
    answers: Sequence[Generation], timings: Timings
) -> list[tuple[str, RenderableType]]:
    first_token = mean([answer.prefill_seconds for answer in answers])
    prompts = "prompt" if len(answers) == 1 else f"{len(answers)} prompts"
    rows: list[tuple[str, RenderableType]] = [
        (
            prompts,
            (
                f"{timings.prompt_tokens} tokens in {timings.prefill_seconds:.2f} s; first token"
                f" after {first_token:.2f} s"
            ),
        )
    ]
    if timings.decode_steps:
        per_step = 1000 * timings.decode_seconds / timings.decode_steps
        rows += [
            (
                "generation",
                (
                    f"{timings.generated_tokens} tokens in {timings.decode_seconds:.2f} s:"
                    f" {timings.decode_tokens_per_second:.1f} tokens/s ({timings.decode_steps}"
                    f" steps of {per_step:.1f} ms)"
                ),
            ),
            ("", "(a clock of these steps alone: no loading, prompts or tokenizing)"),
        ]
    return rows


def _acceptance_rows(lengths: Sequence[int], width: int) -> list[tuple[str, RenderableType]]:
    if width == 1 or not lengths:
        return []
    rows: list[tuple[str, RenderableType]] = [
        ("τ", f"{mean(lengths):.2f} tokens a step and sequence, bonus included, of at most {width}")
    ]
    counts = Counter(lengths)
    bars = Table.grid(padding=(0, 1))
    for length in range(1, width + 1):
        share = counts[length] / len(lengths)
        bar = ProgressBar(total=max(counts.values()), completed=counts[length], width=BAR_WIDTH)
        bars.add_row(f"{length}", bar, f"{counts[length]}", f"{share:.0%}")
    return [*rows, ("accepted", bars)]
