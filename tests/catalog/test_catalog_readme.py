"""The tables of catalog/README.md are the code's; this module, run as a script, writes them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from trtllm_dflash.builder import pair_support
from trtllm_dflash.catalog import gpus
from trtllm_dflash.catalog.pairs import UNLISTED

PAGE = Path(__file__).parents[2] / "trtllm_dflash" / "catalog" / "README.md"
TABLES = {
    "pairs": lambda: pair_support.markdown_table(pair_support.list_support()),
    "unlisted": lambda: "\n".join(f"- {name}" for name in UNLISTED),
    "gpus": gpus.markdown_table,
}


def _section(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- {name} -->\n)(.*?)(<!-- end -->)", re.DOTALL)


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_the_codes(name: str) -> None:
    found = _section(name).search(PAGE.read_text())
    assert found is not None
    assert found[2].strip() == TABLES[name]()


def write() -> None:
    """Put the code's tables into the page."""
    text = PAGE.read_text()
    for name, make in TABLES.items():
        found = _section(name).search(text)
        assert found is not None
        text = f"{text[: found.start(2)]}\n{make()}\n\n{text[found.end(2) :]}"
    PAGE.write_text(text)


if __name__ == "__main__":
    write()
