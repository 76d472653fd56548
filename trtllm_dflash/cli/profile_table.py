"""The tables of `dflash-trt profile`.

They show all figures, acceptance by category and by position, the time of a step, and the advice.
"""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

from trtllm_dflash.cli.console import table_console
from trtllm_dflash.profile.formatting import (
    COLUMNS,
    advice_sentences,
    category_cells,
    cells,
    milliseconds,
)
from trtllm_dflash.profile.result import Profile, StepBreakdown, SystemResult

_FILE_WIDTH = 160  # outside of a terminal: enough for every table


def print_profile(profile: Profile) -> None:
    """Print the tables on stdout."""
    console = table_console(width=None if sys.stdout.isatty() else _FILE_WIDTH)
    console.print(f"{_title(profile)}\n")
    console.print(_figures(profile))
    console.print(
        "\nTTFT: a prompt's own steps. TPOT, step, tok/s: decode steps alone, while the batch is"
        " whole.\n"
    )
    drafting = _drafting_results(profile)
    if drafting:
        _print_with_space(console, _by_category(profile, drafting))
    # Acceptance by position is unknown if all answers were one step.
    by_position = [result for result in drafting if result.acceptance.by_position]
    if by_position:
        _print_with_space(console, _by_position(by_position))
    if profile.step_breakdowns:
        _print_with_space(console, _step_breakdowns(profile.step_breakdowns))
    for sentence in advice_sentences(profile):
        console.print(sentence)


def _print_with_space(console: Console, table: Table) -> None:
    console.print(table)
    console.print()


def _title(profile: Profile) -> str:
    """Return the line above the tables."""
    prompts, machine = profile.prompts, profile.machine
    return (
        f"{profile.engine['directory']}: {prompts['count']} prompts of"
        f" {len(prompts['categories'])} categories, at most {profile.settings['max_tokens']} new"
        f" tokens each, {machine['threads']} threads of {machine['processor']}"
    )


def _drafting_results(profile: Profile) -> list[SystemResult]:
    """Return the results with drafts at the first batch size."""
    batch = profile.results[0].batch
    return [result for result in profile.results if result.draft_len and result.batch == batch]


def _grid(*titles: str) -> Table:
    """Return an empty table without lines; its first column is left-aligned."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for index, title in enumerate(titles):
        table.add_column(title, justify="right" if index else "left", no_wrap=True)
    return table


def _figures(profile: Profile) -> Table:
    """Return the table of all figures, with a blank row between batch sizes."""
    table, batch = _grid(*COLUMNS), profile.results[0].batch
    for result in profile.results:
        if result.batch != batch:
            table.add_row()
        batch = result.batch
        table.add_row(*cells(profile, result))
    return table


def _by_category(profile: Profile, results: list[SystemResult]) -> Table:
    """Return the table of acceptance and speedup by category."""
    table = _grid("τ, × plain by category", *(result.system for result in results))
    for row in category_cells(profile, results):
        table.add_row(*row)
    return table


def _by_position(results: list[SystemResult]) -> Table:
    """Return the table of acceptance by the draft's position in the block."""
    longest = max(len(result.acceptance.by_position) for result in results)
    table = _grid("accepted", *(f"draft {position}" for position in range(1, longest + 1)))
    for result in results:
        shares = [f"{share:.0%}" for share in result.acceptance.by_position]
        table.add_row(result.system, *shares)
    return table


def _step_breakdowns(breakdowns: list[StepBreakdown]) -> Table:
    """Return the table of where a step's time goes."""
    table = _grid("step, ms", "batch", "verify", "accept", "draft", "host", "all")
    for one in breakdowns:
        parts = (one.verify_seconds, one.accept_seconds, one.draft_seconds, one.host_seconds)
        texts = ["" if seconds is None else milliseconds(seconds) for seconds in parts]
        table.add_row(one.system, str(one.batch), *texts, milliseconds(one.step_seconds))
    return table
