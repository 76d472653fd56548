"""The graph's page says what the declarations say."""

from __future__ import annotations

from tests.graph.markdown_tables import PAGE, rendered


def test_tables_are_up_to_date() -> None:
    text = PAGE.read_text()
    assert rendered(text) == text, "run `python -m tests.graph.markdown_tables`"


def test_a_stale_table_is_seen() -> None:
    text = PAGE.read_text()
    assert "| `past_len` | input | int32 | [batch] |" in text
    assert rendered(text.replace("positions already in the caches", "something else")) == text
