"""The summary of `dflash-trt run`: tokens a second, τ, and the histogram of accepted lengths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import click
from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from trtllm_dflash.log import counted
from trtllm_dflash.log import table as text_table
from trtllm_dflash.runtime.outputs import Generation, Timings, TokenLogprobs, mean
from trtllm_dflash.runtime.text.tokenizer import Tokenizer

BAR_WIDTH = 40
Row = tuple[str, RenderableType]


def print_summary(answers: Sequence[Generation], timings: Timings, *, width: int) -> None:
    """Print the summary on stderr; `width` is the tokens of a slot in a decode step."""
    lengths: list[int] = []
    for answer in answers:
        lengths += answer.acceptance_lengths
    rows = [_prefill_row(answers, timings)]
    if timings.decode_steps:
        rows += _decode_rows(timings)
    seeds = [answer.seed for answer in answers if answer.seed is not None]
    if seeds:
        more = f" and {len(seeds) - 1} more" if len(seeds) > 1 else ""
        rows.append(("seed", f"{seeds[0]}{more}"))
    if width > 1 and lengths:
        rows += _acceptance_rows(lengths, width)
        rows.append(_source_row(answers))
    table = Table.grid(padding=(0, 2))
    for name, value in rows:
        table.add_row(name, value)
    console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)
    with console.capture() as captured:  # rich fills every line with blanks
        console.print(Group(Text(), table))
    lines = captured.get().splitlines()
    click.echo("\n".join(line.rstrip() for line in lines), err=True)


def print_cuts(answers: Sequence[Generation], max_tokens: int) -> None:
    """Say on stderr how many answers did not end by themselves, and at which limit."""
    lengths = [len(answer.token_ids) for answer in answers if answer.finish_reason == "length"]
    if not lengths:
        return
    limits = {
        "--max-tokens" if length >= max_tokens else "the engine's max_seq_len"
        for length in lengths
    }
    which = f"at {counted(lengths[0], 'token')}"
    if len(answers) > 1:
        which = f"{len(lengths)} of {len(answers)} answers"
    click.echo(f"(cut {which}, {' or '.join(sorted(limits))})", err=True)


def print_logprobs(logprobs: Sequence[TokenLogprobs], tokenizer: Tokenizer | None) -> None:
    """Print a line on stdout for each token of an answer, with the most likely ones beside it."""

    def shown(token: int) -> str:
        return str(token) if tokenizer is None else repr(tokenizer.decode([token]))

    rows: list[Sequence[str]] = [("token", "log probability", "most likely")]
    for one in logprobs:
        others = "  ".join(f"{shown(token)} {value:.4f}" for token, value in one.top)
        rows.append((shown(one.token_id), f"{one.logprob:.4f}", others))
    click.echo(f"\n{text_table(rows, indent='', align='<>')}")


def _prefill_row(answers: Sequence[Generation], timings: Timings) -> Row:
    name = "prompt"
    if len(answers) > 1:
        name = f"{len(answers)} prompts"
    first_token = mean([answer.prefill_seconds for answer in answers])
    seconds = f"{counted(timings.prompt_tokens, 'token')} in {timings.prefill_seconds:.2f} s"
    return name, f"{seconds}; first token after {first_token:.2f} s"


def _decode_rows(timings: Timings) -> list[Row]:
    seconds = f"{counted(timings.generated_tokens, 'token')} in {timings.decode_seconds:.2f} s"
    rate = f"{timings.decode_tokens_per_second:.1f} tokens/s"
    per_step = 1000 * timings.decode_seconds / timings.decode_steps
    steps = f"{counted(timings.decode_steps, 'step')} of {per_step:.1f} ms"
    clock = "(a clock of these steps alone: no loading, prompts or tokenizing)"
    return [("generation", f"{seconds}: {rate} ({steps})"), ("", clock)]


def _acceptance_rows(lengths: Sequence[int], width: int) -> list[Row]:
    length = f"{mean(lengths):.2f} tokens a step and sequence"
    rows: list[Row] = [("τ", f"{length}, bonus included, of at most {width}")]
    rows.append(("accepted", _histogram(lengths, width)))
    return rows


def _source_row(answers: Sequence[Generation]) -> Row:
    """Return the accepted of the verified drafts by what drafted them."""
    verified = Counter[str]()
    accepted = Counter[str]()
    for answer in answers:
        for source, count in answer.drafts_by_source.items():
            verified[source] += count.verified
            accepted[source] += count.accepted
    parts = [f"{name} {accepted[name]} of {verified[name]}" for name in sorted(verified)]
    return "drafts", f"accepted of {', of '.join(parts)}"


def _histogram(lengths: Sequence[int], width: int) -> Table:
    counts = Counter(lengths)
    most = max(counts.values())
    bars = Table.grid(padding=(0, 1))
    for length in range(1, width + 1):
        count = counts[length]
        bar = ProgressBar(
            total=most, completed=count, width=BAR_WIDTH, finished_style="bar.complete"
        )
        bars.add_row(f"{length}", bar, f"{count}", f"{count / len(lengths):.0%}")
    return bars
