"""dflash-trt list: published pairs of target and drafter, and which of them can be built."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from trtllm_dflash.builder.pair_support import PairSupport

_TITLES = ("--target", "target", "drafter", "block", "builds")


@click.command(short_help="Show published pairs and which can be built.")
@click.option("--json", "as_json", is_flag=True, help="print JSON")
def list(as_json: bool) -> None:
    """Show published pairs of target and DFlash drafter, and which of them can be built.

    Their names are what `build --target NAME` takes; it selects the drafter too. For pairs that
    cannot be built, the reasons are shown.
    """
    from trtllm_dflash.builder.pair_support import list_support
    from trtllm_dflash.catalog.pairs import UNLISTED

    pairs = list_support()
    if as_json:
        click.echo(json.dumps([pair.to_json() for pair in pairs], indent=2))
        return
    click.echo(_table(pairs))
    click.echo("\nwhy not")
    for reason, names in _names_by_reason(pairs).items():
        click.echo(f"  {', '.join(names)}\n    {reason}")
    click.echo("\npublished too, but not in this table, since too little of them could be read")
    click.echo(f"  {', '.join(UNLISTED)}")


def _table(pairs: Sequence[PairSupport]) -> str:
    from trtllm_dflash.builder.pair_support import format_block_size
    from trtllm_dflash.log import table

    rows: Sequence[Sequence[str]] = [
        (
            row.pair.name,
            row.pair.target.repository,
            row.pair.drafter.repository,
            format_block_size(row),
            row.builds,
        )
        for row in pairs
    ]
    return table([_TITLES, *rows], indent="")


def _names_by_reason(pairs: Sequence[PairSupport]) -> dict[str, Sequence[str]]:
    """Group the names of pairs by what keeps them from being built."""
    groups: dict[str, dict[str, None]] = {}
    for row in pairs:
        for half, reason in row.reasons:
            text = f"{half}: {reason}" if half else reason
            groups.setdefault(text, {})[row.pair.name] = None
    return {reason: tuple(names) for reason, names in groups.items()}
