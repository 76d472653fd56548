"""dflash-trt list: published pairs of target and drafter, and which of them can be built."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from trtllm_dflash.builder.pair_support import PairSupport

_TITLES = ("--target", "block", "builds", "drafter's licence")
_MIN_WIDTH, _MAX_WIDTH, _LICENCE_WIDTH = 60, 100, 18
_HANDOVER = "hand-over: not built, but `export-trtllm` writes what TensorRT-LLM needs for them"
_TRAINED = (
    "drafters trained with options of the chat template, which are their engines' default"
)
_UNLISTED = "published too, but not in this table, since too little of them could be read"


@click.command(short_help="Show published pairs and which can be built.")
@click.option("--json", "as_json", is_flag=True, help="print JSON")
def list(as_json: bool) -> None:
    """Show published pairs of target and DFlash drafter, and which of them can be built.

    Their names are what `build --target NAME` takes; it selects the drafter too. For pairs that
    cannot be built, the reasons are shown. The text fits the terminal, up to 100 columns.
    """
    from trtllm_dflash.builder.pair_support import list_support
    from trtllm_dflash.catalog.pairs import UNLISTED

    pairs = list_support()
    if as_json:
        click.echo(json.dumps([pair.to_json() for pair in pairs], indent=2))
        return
    columns = shutil.get_terminal_size((_MAX_WIDTH, 1)).columns
    width = min(max(columns, _MIN_WIDTH), _MAX_WIDTH)
    click.echo(_table(pairs, width))
    sections = {
        "why not": _names_by_reason(pairs),
        _HANDOVER: _names_by(pairs, lambda row: row.pair.handover),
        "licences": _names_by(pairs, _licence),
        _TRAINED: _names_by(pairs, _template_options),
        "notes": _names_by(pairs, lambda row: row.pair.drafter.note),
    }
    for title, groups in sections.items():
        click.echo(f"\n{_wrapped(title, width, indent=0)}")
        for reason, names in groups.items():
            click.echo(_wrapped(", ".join(names), width, indent=2))
            click.echo(_wrapped(reason, width, indent=4))
    click.echo(f"\n{_wrapped(_UNLISTED, width, indent=0)}")
    click.echo(_wrapped("; ".join(UNLISTED), width, indent=2))


def _table(pairs: Sequence[PairSupport], width: int) -> str:
    """Return two lines for a pair, or three: what --target takes, and the repositories."""
    from trtllm_dflash.builder.pair_support import format_block_size
    from trtllm_dflash.log import table

    rows: Sequence[Sequence[str]] = [
        (
            row.pair.name,
            format_block_size(row),
            row.builds,
            _short_licence(row),
        )
        for row in pairs
    ]
    title, *lines = table([_TITLES, *rows], indent="").splitlines()
    shown = [title]
    for line, row in zip(lines, pairs, strict=True):
        models = (row.pair.target.repository, f"> {row.pair.drafter.repository}")
        together = f"  {' '.join(models)}"
        shown += [line, together] if len(together) <= width else [line, *_indented(models)]
    return "\n".join(shown)


def _indented(lines: Sequence[str]) -> Sequence[str]:
    return [f"  {line}" for line in lines]


def _short_licence(row: PairSupport) -> str:
    name = row.pair.drafter.licence.partition(",")[0] or "unknown"
    return name if len(name) <= _LICENCE_WIDTH else "see below"


def _licence(row: PairSupport) -> str:
    drafter = row.pair.drafter
    return drafter.licence_text if drafter.licence else ""


def _template_options(row: PairSupport) -> str:
    options = row.pair.drafter.chat_template_kwargs
    return json.dumps(dict(options)) if options else ""


def _wrapped(text: str, width: int, *, indent: int) -> str:
    """Return a text on lines of at most `width`; names are not broken."""
    blanks = " " * indent
    return textwrap.fill(
        text,
        width,
        initial_indent=blanks,
        subsequent_indent=blanks,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _names_by_reason(pairs: Sequence[PairSupport]) -> Mapping[str, Sequence[str]]:
    """Group the names of pairs by what keeps them from being built."""
    groups: dict[str, dict[str, None]] = {}
    for row in pairs:
        for half, reason in row.reasons:
            text = f"{half}: {reason}" if half else reason
            groups.setdefault(text, {})[row.pair.name] = None
    return {reason: tuple(names) for reason, names in groups.items()}


def _names_by(
    pairs: Sequence[PairSupport], text_of: Callable[[PairSupport], str]
) -> Mapping[str, Sequence[str]]:
    """Group the names of pairs by a text of theirs; pairs without one are left out."""
    groups: dict[str, tuple[str, ...]] = {}
    for row in pairs:
        text = text_of(row)
        if text:
            groups[text] = (*groups.get(text, ()), row.pair.name)
    return groups
