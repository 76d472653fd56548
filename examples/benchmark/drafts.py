"""What drafts of each source give, by kind of prompt: tables from a file of `profile --json`.

    python examples/benchmark/drafts.py examples/benchmark/profile_lookup.json

The file is of one run with some numbers of drafts and sources. Beside the tables stand the goals of
this project, and whether that run reached them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import click

from trtllm_dflash.profile.formatting import category_speedup, differing_texts, speedup
from trtllm_dflash.profile.load import load
from trtllm_dflash.profile.result import DFLASH, Profile, SystemResult

_SOURCES = {"dflash": "drafter", "lookup": "lookup", "both": "both"}
_LEAST_LENGTH, _LEAST_SPEEDUP = 1.85, 1.25  # of both sources, all prompts
_LEAST_OF_PLAIN, _LEAST_OF_BEST = 0.98, 0.97  # of `auto`


def markdown(profile: Profile) -> str:
    """Return the tables of τ and of tokens a second, and the goals."""
    results = _drafting(profile, profile.results[0].batch)

    def length(result: SystemResult, kind: int | None) -> float | None:
        found = result if kind is None else result.by_category[kind]
        return found.acceptance.acceptance_length

    def ratio(result: SystemResult, kind: int | None) -> float | None:
        if kind is None:
            return speedup(profile, result)
        return category_speedup(profile, result, kind)

    parts = [
        "The acceptance length τ, by what may draft:",
        _by_kind(results, length),
        "Tokens a second over those of the plain engine:",
        _by_kind(results, ratio),
        f"{_texts(results)} Measured on {profile.created[:10]}.",
        "\n".join(["| goal | measured | |", "|---|---|---|", *_goals(profile, results)]),
    ]
    return "\n\n".join(parts)


def by_batch(profile: Profile) -> str:
    """Return the table of tokens a second by batch size, and the goals of `auto` there."""
    batches = sorted({result.batch for result in profile.results})
    of_batch = {batch: _drafting(profile, batch) for batch in batches}
    results = [result for rows in of_batch.values() for result in rows]
    titles = ["batch", *map(_number, of_batch[batches[0]])]
    titles += [f"`auto` over plain: at least {_LEAST_OF_PLAIN}"]
    titles += [f"over the best fixed number: at least {_LEAST_OF_BEST}"]
    lines = [titles, ["---"] * len(titles)]
    for batch, rows in of_batch.items():
        best = max(result.tokens_per_second for result in rows if not result.auto)
        (auto,) = (result for result in rows if result.auto)
        ratios = [speedup(profile, result) or 0.0 for result in rows]
        lengths = [result.acceptance.acceptance_length for result in rows]
        cells = [f"{ratio:.2f} ({tau:.2f})" for ratio, tau in zip(ratios, lengths, strict=True)]
        cells += [_verdict(speedup(profile, auto) or 0.0, _LEAST_OF_PLAIN)]
        cells += [_verdict(auto.tokens_per_second / best, _LEAST_OF_BEST)]
        lines.append([str(batch), *cells])
    return f"{_table(lines)}\n\n{_texts(results)} Measured on {profile.created[:10]}."


def _verdict(value: float, least: float) -> str:
    return f"{value:.3f}: {_outcome(value >= least)}"


def _outcome(is_reached: bool) -> str:
    return "reached" if is_reached else "missed"


def _table(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _drafting(profile: Profile, batch: int) -> list[SystemResult]:
    """Return the DFlash systems with drafts at a batch size."""
    own = [one for one in profile.results if (one.implementation, one.batch) == (DFLASH, batch)]
    return [result for result in own if result.drafts is not None]


def _number(result: SystemResult) -> str:
    return "`auto`" if result.auto else f"{result.draft_len} drafts"


def _by_kind(
    results: Sequence[SystemResult], figure: Callable[[SystemResult, int | None], float | None]
) -> str:
    """Return a table: a row for all prompts and for each kind, a column for each system."""
    titles, last = ["prompts"], ""
    for result in results:
        source = _SOURCES[str(result.drafts)]
        number = _number(result)
        titles.append(source if number == last else f"{number}: {source}")
        last = number
    rows = [titles, ["---"] * len(titles)]
    kinds = [row.category for row in results[0].by_category]
    for name, index in [("**all**", None), *zip(kinds, range(len(kinds)), strict=True)]:
        cells = [name]
        for result in results:
            value = figure(result, index)
            differing = "" if index is None else differing_texts(result, kinds[index])
            cells.append(("" if value is None else f"{value:.2f}") + differing)
        rows.append(cells)
    return _table(rows)


def _texts(results: Sequence[SystemResult]) -> str:
    """Return the sentence that says how many texts are those of plain decoding."""
    answers = sum(len(result.by_prompt) for result in results)
    same = sum(result.same_tokens for result in results)
    if same == answers:
        return f"All {answers} texts, of every cell, are those of plain decoding."
    return f"{same} of {answers} texts are those of plain decoding: some are NOT."


def _goals(profile: Profile, results: Sequence[SystemResult]) -> Iterator[str]:
    """Yield the rows of the goals, each reached or missed."""
    both = [result for result in results if result.drafts == "both"]
    fixed = [result for result in both if not result.auto]
    longest = max(fixed, key=lambda result: result.draft_len)
    what = f"τ of both sources, {_number(longest)}: at least {_LEAST_LENGTH}"
    length = longest.acceptance.acceptance_length
    yield _goal(what, length, length >= _LEAST_LENGTH)
    for result in fixed:
        yield from _beside_drafter(result, results)
    best = max(fixed, key=lambda result: result.tokens_per_second)
    for result in both:
        what = f"tokens/s of both over plain, {_number(result)}"
        found = speedup(profile, result) or 0.0
        if result.auto or result is best:
            yield _goal(f"{what}: at least {_LEAST_SPEEDUP}", found, found >= _LEAST_SPEEDUP)
        else:
            yield f"| {what} | {found:.3f} | |"
        yield _least_kind(profile, result)
    what = f"`auto` over the best fixed number, {_number(best)}: at least {_LEAST_OF_BEST}"
    auto = next((result for result in both if result.auto), None)
    if auto is None:
        yield f"| {what} | | not measured |"
        return
    share = auto.tokens_per_second / best.tokens_per_second
    yield _goal(what, share, share >= _LEAST_OF_BEST)


def _beside_drafter(result: SystemResult, results: Sequence[SystemResult]) -> Iterator[str]:
    """Yield the row on the kind whose τ gains least by both sources over the drafter alone."""
    for other in results:
        if (other.drafts, other.draft_len, other.auto) == ("dflash", result.draft_len, False):
            least, kind = min(
                (
                    own.acceptance.acceptance_length / alone.acceptance.acceptance_length,
                    own.category,
                )
                for own, alone in zip(result.by_category, other.by_category, strict=True)
            )
            what = (
                f"τ of both over the drafter's alone, {_number(result)}, any kind: at least 1"
            )
            yield _goal(what, least, least >= 1, kind)


def _least_kind(profile: Profile, result: SystemResult) -> str:
    """Return the row on the kind that gains least over plain decoding: a goal of `auto` alone."""
    found = [
        (category_speedup(profile, result, index) or 0.0, row.category)
        for index, row in enumerate(result.by_category)
    ]
    least, kind = min(found)
    what = f"tokens/s of both over plain, {_number(result)}, any kind"
    if not result.auto:
        return f"| {what} | {least:.3f} ({kind}) | |"
    return _goal(f"{what}: at least {_LEAST_OF_PLAIN}", least, least >= _LEAST_OF_PLAIN, kind)


def _goal(what: str, value: float, is_reached: bool, kind: str = "") -> str:
    measured = f"{value:.3f}" + (f" ({kind})" if kind else "")
    return f"| {what} | {measured} | {_outcome(is_reached)} |"


@click.command()
@click.argument("profile_json", type=click.Path(path_type=Path))
def main(profile_json: Path) -> None:
    """Print the tables of PROFILE_JSON as Markdown."""
    profile = load(profile_json)
    is_of_one = len({result.batch for result in profile.results}) == 1
    click.echo(markdown(profile) if is_of_one else by_batch(profile))


if __name__ == "__main__":
    main()
