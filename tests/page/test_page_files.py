"""The files of the page, without a browser: nothing from outside, nothing that makes markup."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.house.rules import MAX_FILE_LINES, PACKAGE, wide_lines

PAGE = PACKAGE / "http_server" / "page"
FILES = sorted(PAGE.iterdir())
SCRIPTS = [path for path in FILES if path.suffix == ".js"]
INDEX = (PAGE / "index.html").read_text()
# What makes markup or code of a text.
NEVER = (
    *("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "DOMParser", "srcdoc"),
    *("eval(", "new Function", "createContextualFragment", "setHTMLUnsafe", "javascript:"),
)


class Elements(HTMLParser):
    """The elements of a document with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


ELEMENTS = Elements(INDEX).found
IDS = [attributes["id"] for _, attributes in ELEMENTS if "id" in attributes]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_page_files_are_small_and_narrow(path: Path) -> None:
    assert wide_lines(path) == []
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_page_files_ask_for_nothing_from_outside(path: Path) -> None:
    addresses = re.findall(r"(?:https?:)?//[\w-]+\.[\w./-]+", path.read_text(encoding="utf-8"))
    assert [each for each in addresses if "www.w3.org/2000/svg" not in each] == []


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_make_no_markup_of_text(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert [word for word in NEVER if word in text] == []


def test_index_has_no_code_of_its_own() -> None:
    """The policy of the page forbids what is inline."""
    assert INDEX.count("<script") == INDEX.count("></script>") == 2
    for tag, attributes in ELEMENTS:
        assert tag not in ("style", "iframe", "object", "base")
        assert [name for name in attributes if name.startswith("on") or name == "style"] == []


def test_index_refers_to_files_that_exist() -> None:
    used = set()
    for _, attributes in ELEMENTS:
        for name in ("src", "href"):
            address = attributes.get(name) or ""
            if address.startswith("/page/"):
                used.add(address.removeprefix("/page/"))
    for path in SCRIPTS:
        used |= set(re.findall(r'from "\./([\w.]+)"', path.read_text(encoding="utf-8")))
    assert used | {"index.html"} == {path.name for path in FILES}


def test_scripts_find_the_ids_that_they_name() -> None:
    assert len(IDS) == len(set(IDS))
    for path in SCRIPTS:
        named = set(re.findall(r'byId\("([\w-]+)"\)', path.read_text(encoding="utf-8")))
        assert named <= set(IDS), path.name


def test_labels_and_references_lead_somewhere() -> None:
    for _, attributes in ELEMENTS:
        for name in ("for", "aria-labelledby", "aria-describedby", "aria-controls"):
            if name in attributes:
                assert attributes[name] in IDS
