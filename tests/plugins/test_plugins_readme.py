"""The plugins' page says what the declarations say."""

from __future__ import annotations

from tests.plugins.markdown_tables import PAGE, rendered


def test_the_table_is_up_to_date() -> None:
    text = PAGE.read_text()
    assert rendered(text) == text, "run `python -m tests.plugins.markdown_tables`"


def test_a_stale_table_is_seen() -> None:
    text = PAGE.read_text()
    assert "window_size (int)" in text
    assert rendered(text.replace("window_size (int)", "window (int)")) == text
