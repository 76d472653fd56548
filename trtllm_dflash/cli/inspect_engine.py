"""dflash-trt inspect: the contents of an engine directory, checked against its manifest."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command(short_help="Show an engine and check its files.")
@click.argument("engine", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="print JSON")
@click.pass_context
def inspect(ctx: click.Context, engine: Path, as_json: bool) -> None:
    """Show an engine's models, sizes, inputs and outputs, and check its files.

    Exit code 1 if a file differs from the manifest that the build wrote.
    """
    from trtllm_dflash.engine_dir.inspection import inspect_engine

    found = inspect_engine(engine)
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=2))
    else:
        for title, lines in found.sections():
            click.echo("\n".join([title, *(f"  {line}" for line in lines)]))
    if found.differences:
        ctx.exit(1)
