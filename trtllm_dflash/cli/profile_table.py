"""What `dflash-trt profile` shows: all figures, τ by kind and by position, where a step's time
goes, the advice.
"""

from __future__ import annotations

import sys

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

_FILE_WIDTH = 160  # where no terminal has a width of its own: enough for every table


def print_profile(profile: Profile) -> None:
    """Print the tables on stdout."""
    console = table_console(width=None if sys.stdout.isatty() else _FILE_WIDTH)
    asked, settings, machine = profile.prompts, profile.settings, profile.machine
    console.print(
        f"{profile.engine['directory']}: {asked['count']} prompts of {len(asked['categories'])} kinds,"
        f" at most {settings['max_tokens']} new tokens each, {machine['threads']} threads of"
        f" {machine['processor']}\n"
    )
    console.print(_figures(profile))
    console.print(
        "\nTTFT: a prompt's own steps. TPOT, step, tok/s: generation steps alone, while the batch"
        " is whole.\n"
    )
    drafting = [result for result in profile.results if _is_first_with_drafts(profile, result)]
    if drafting:
        console.print(_by_category(profile, drafting))
        console.print()
    by_position = [
        result for result in drafting if result.acceptance.by_position
    ]  # none if all answers were one step
    if by_position:
        console.print(_by_position(by_position))
        console.print()
    if profile.step_breakdowns:
        console.print(_step_breakdowns(profile.step_breakdowns))
        console.print()
    for sentence in advice_sentences(profile):
        console.print(sentence)


def _is_first_with_drafts(profile: Profile, result: SystemResult) -> bool:
    return bool(result.draft_len) and result.batch == profile.results[0].batch


def _grid(*titles: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for index, title in enumerate(titles):
        table.add_column(title, justify="right" if index else "left", no_wrap=True)
    return table


def _figures(profile: Profile) -> Table:
    table, batch = _grid(*COLUMNS), profile.results[0].batch
    for result in profile.results:
        if result.batch != batch:
            table.add_row()
        batch = result.batch
        table.add_row(*cells(profile, result))
    return table


def _by_category(profile: Profile, results: list[SystemResult]) -> Table:
    table = _grid("τ, × plain by kind", *(result.system for result in results))
    for row in category_cells(profile, results):
        table.add_row(*row)
    return table


def _by_position(results: list[SystemResult]) -> Table:
    longest = max(len(result.acceptance.by_position) for result in results)
    table = _grid("accepted", *(f"draft {place + 1}" for place in range(longest)))
    for result in results:
        table.add_row(result.system, *(f"{share:.0%}" for share in result.acceptance.by_position))
    return table


def _step_breakdowns(step_breakdowns: list[StepBreakdown]) -> Table:
    table = _grid("step, ms", "batch", "verify", "accept", "draft", "host", "all")
    for breakdown in step_breakdowns:
        parts = (
            breakdown.verify_seconds,
            breakdown.accept_seconds,
            breakdown.draft_seconds,
            breakdown.host_seconds,
        )
        texts = ("" if seconds is None else milliseconds(seconds) for seconds in parts)
        table.add_row(
            breakdown.system, str(breakdown.batch), *texts, milliseconds(breakdown.step_seconds)
        )
    return table
