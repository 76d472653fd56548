"""The tables of `dflash-trt profile`.

They show all figures, acceptance by category and by position, the time of a step, and the advice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import click

from trtllm_dflash.log import counted, table
from trtllm_dflash.options.draft_sources import SOURCES
from trtllm_dflash.profile.formatting import (
    COLUMNS,
    advice_sentences,
    category_cells,
    cells,
    milliseconds,
)
from trtllm_dflash.profile.result import Profile, StepBreakdown, SystemResult
from trtllm_dflash.runtime.text.chat_format import describe_format


def print_profile(profile: Profile) -> None:
    """Print the tables on stdout."""
    click.echo(f"{_title(profile)}\n")
    click.echo(_figures(profile))
    click.echo(
        "\nTTFT: a prompt's own steps. TPOT, step, tok/s: decode steps alone, while the batch is"
        " whole.\n"
    )
    drafting = _drafting_results(profile)
    if drafting:
        _print_with_space(_by_category(profile, drafting))
    by_source = [result for result in drafting if result.acceptance.by_source]
    if by_source:
        _print_with_space(_by_source(by_source))
    # Acceptance by position is unknown if all answers were one step.
    by_position = [result for result in drafting if result.acceptance.by_position]
    if by_position:
        _print_with_space(_by_position(by_position))
    if profile.step_breakdowns:
        _print_with_space(_step_breakdowns(profile.step_breakdowns))
    for sentence in advice_sentences(profile):
        click.echo(sentence)


def _print_with_space(text: str) -> None:
    click.echo(f"{text}\n")


def _title(profile: Profile) -> str:
    """Return the line above the tables."""
    prompts = profile.prompts
    machine = profile.machine
    threads = counted(machine["threads"], "thread")
    return (
        f"{profile.engine['directory']}: {prompts['count']} prompts of"
        f" {len(prompts['categories'])} categories ({describe_format(prompts)}), at most"
        f" {profile.settings['max_tokens']} new tokens each, {threads} of {machine['processor']}"
    )


def _drafting_results(profile: Profile) -> list[SystemResult]:
    """Return the results with drafts at the first batch size."""
    batch = profile.results[0].batch
    return [result for result in profile.results if result.draft_len and result.batch == batch]


def _grid(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return an aligned table; its first column is left-aligned."""
    return table([titles, *rows], indent="", align="<" + ">" * (len(titles) - 1))


def _figures(profile: Profile) -> str:
    """Return the table of all figures, with a blank row between batch sizes."""
    rows: list[Sequence[str]] = []
    batch = profile.results[0].batch
    for result in profile.results:
        if result.batch != batch:
            rows.append([""] * len(COLUMNS))
        batch = result.batch
        rows.append(cells(profile, result))
    return _grid(COLUMNS, rows)


def _by_category(profile: Profile, results: list[SystemResult]) -> str:
    """Return the table of acceptance and speedup by category."""
    titles = ["τ, × plain by category", *(result.system for result in results)]
    rows = category_cells(profile, results)
    return f"{_grid(titles, rows)}\n\nTexts are the plain engine's where a cell says no more."


def _by_source(results: list[SystemResult]) -> str:
    """Return the table of accepted and verified drafts by what drafted them."""
    rows = []
    for result in results:
        found = {one.source: one for one in result.acceptance.by_source}
        counts = [found.get(source) for source in SOURCES]
        texts = ["" if one is None else f"{one.accepted} of {one.verified}" for one in counts]
        rows.append([result.system, *texts])
    return _grid(["accepted by source", *SOURCES], rows)


def _by_position(results: list[SystemResult]) -> str:
    """Return the table of acceptance by the draft's position in the block."""
    longest = max(len(result.acceptance.by_position) for result in results)
    rows = []
    for result in results:
        shares = [f"{share:.0%}" for share in result.acceptance.by_position]
        unknown = [""] * (longest - len(shares))
        rows.append([result.system, *shares, *unknown])
    return _grid(["accepted", *(f"draft {place}" for place in range(1, longest + 1))], rows)


def _step_breakdowns(breakdowns: list[StepBreakdown]) -> str:
    """Return the table of where a step's time goes."""
    rows = []
    for one in breakdowns:
        parts = (one.verify_seconds, one.accept_seconds, one.draft_seconds, one.host_seconds)
        texts = ["" if seconds is None else milliseconds(seconds) for seconds in parts]
        rows.append([one.system, str(one.batch), *texts, milliseconds(one.step_seconds)])
    return _grid(["step, ms", "batch", "verify", "accept", "draft", "host", "all"], rows)
