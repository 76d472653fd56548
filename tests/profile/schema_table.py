"""The description of the JSON in trtllm_dflash/profile/README.md.

`python -m tests.profile.schema_table` rewrites it.
"""

from __future__ import annotations

import re
from pathlib import Path

from trtllm_dflash.profile.schema import describe

PAGE = Path(__file__).parents[2] / "trtllm_dflash" / "profile" / "README.md"
_BETWEEN = re.compile(r"(<!-- schema: .*? -->\n).*?(<!-- end -->)", re.DOTALL)


def table() -> str:
    """Return a row for every key."""
    rows = ["| key | type | meaning |", "|---|---|---|"]
    rows += [f"| `{key.path}` | {key.json_type} | {key.meaning} |" for key in describe()]
    return "\n".join(rows)


def rendered(text: str) -> str:
    """Return the page with the current table."""
    return _BETWEEN.sub(lambda found: f"{found[1]}{table()}\n{found[2]}", text)


if __name__ == "__main__":
    PAGE.write_text(rendered(PAGE.read_text()))
