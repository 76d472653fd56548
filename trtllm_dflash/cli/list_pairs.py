"""dflash-trt list: published pairs of target and drafter, and which of them can be built."""

from __future__ import annotations

import json
from collections.abc import Sequence

import click

_TITLES = ("--target", "target", "drafter", "block", "builds")


@click.command
@click.option("--json", "as_json", is_flag=True, help="print JSON")
def list(as_json: bool) -> None:
    """Show published pairs of target and DFlash drafter, which can be built, and why the others
    cannot.

    Their names are what `build --target NAME` takes; it brings the drafter along.
    """
    from trtllm_dflash.builder.pair_support import format_block_size, list_support
    from trtllm_dflash.catalog.pairs import UNLISTED

    found = list_support()
    if as_json:
        click.echo(json.dumps([row.to_json() for row in found], indent=2))
        return
    cells = [
        (
            row.pair.name,
            row.pair.target.repository,
            row.pair.drafter.repository,
            format_block_size(row),
            row.builds,
        )
        for row in found
    ]
    click.echo("\n".join(_aligned([_TITLES, *cells])))
    reasons: dict[str, dict[str, None]] = {}
    for row in found:
        for half, reason in row.reasons:
            reasons.setdefault(f"{half}: {reason}" if half else reason, {})[row.pair.name] = None
    click.echo("\nwhy not")
    for reason, names in reasons.items():
        click.echo(f"  {', '.join(names)}\n    {reason}")
    click.echo(
        "\npublished too, but not in this table, since too little of them could be read\n "
        f" {', '.join(UNLISTED)}"
    )


def _aligned(rows: Sequence[Sequence[str]]) -> Sequence[str]:
    """Cells in columns, not cut: names are there to be copied."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
