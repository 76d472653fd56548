"""The house's words: the field's names, docstrings that begin with a verb, short sentences."""

from __future__ import annotations

from pathlib import Path

from tests.house.rules import (
    PACKAGE,
    ROOT,
    long_sentences,
    long_sentences_in,
    long_test_names,
    passive_docstrings,
    private_words,
    sources,
)

NOT_OURS = {".venv", ".venv-triton", ".venv-oldest", ".venv-peers", "demo", "build", ".git"}


def test_names_are_the_fields_words() -> None:
    assert [line for path in sources(PACKAGE) for line in private_words(path)] == []


def test_private_words_are_found(tmp_path: Path) -> None:
    path = tmp_path / "door.py"
    path.write_text("class BestOfKind:\n    def f(self, tau): self.both_sides = 1\n")
    found = sorted(line.split(": say")[0] for line in private_words(path))
    assert found == [
        "door.py:0: door",
        "door.py:1: BestOfKind",
        "door.py:2: both_sides",
        "door.py:2: tau",
    ]


def test_names_of_tests_are_short() -> None:
    assert [line for path in sources(ROOT / "tests") for line in long_test_names(path)] == []


def test_docstrings_begin_with_a_verb() -> None:
    assert [line for path in sources(PACKAGE) for line in passive_docstrings(path)] == []


def test_docstrings_without_a_verb_are_found(tmp_path: Path) -> None:
    path = tmp_path / "f.py"
    path.write_text('def f():\n    """The rows."""\n\ndef g():\n    """Return the rows."""\n')
    assert passive_docstrings(path) == ["f.py:1: f: 'The rows.'"]


def test_sentences_are_short() -> None:
    pages = [page for page in ROOT.rglob("*.md") if not NOT_OURS & set(page.parts)]
    paths = [*pages, *sources(PACKAGE), *sources(ROOT / "examples"), *sources(ROOT / "plugins")]
    assert [line for path in paths for line in long_sentences(path)] == []


def test_long_sentences_are_found() -> None:
    long = "word " * 25 + "end."
    assert long_sentences_in(f"Short one. {long.capitalize()}\n\n| {long} |\n") == [
        f"26 words: {long.capitalize()[:90]}"
    ]
