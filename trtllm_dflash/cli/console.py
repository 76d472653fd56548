"""Where tables are printed."""

from __future__ import annotations

from typing import Any

from rich.console import Console


def table_console(**options: Any) -> Console:
    """Make a console without markup: names and paths may hold texts such as `[/x]`."""
    return Console(highlight=False, soft_wrap=True, markup=False, emoji=False, **options)
