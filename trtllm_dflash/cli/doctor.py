"""dflash-trt doctor: what this machine can build and run, and why not."""

from __future__ import annotations

import json

import click


@click.command(short_help="Show what this machine can build and run, and why not.")
@click.option("--json", "as_json", is_flag=True, help="print JSON")
def doctor(as_json: bool) -> None:
    """Show what this machine can build and run, and why not."""
    from trtllm_dflash.hardware.doctor import diagnose_machine
    from trtllm_dflash.runtime.sessions.base import SESSIONS

    found = diagnose_machine(SESSIONS)
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=2))
        return
    for title, lines in found.sections():
        click.echo("\n".join([title, *(f"  {line}" for line in lines)]))
