"""Where tables are printed."""

from __future__ import annotations

from typing import Any

from rich.console import Console


def table_console(**options: Any) -> Console:
    """A console that prints every text as it is: names and paths may hold what rich takes for
    markup, as `[/x]`.
    """
    return Console(highlight=False, soft_wrap=True, markup=False, emoji=False, **options)
