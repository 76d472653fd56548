"""The report: one complete, well-formed page with the figures of the profile, for two themes."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from trtllm_dflash.errors import UsageError
from trtllm_dflash.profile import theme
from trtllm_dflash.profile.formatting import (
    COLUMNS,
    advice_sentences,
    category_cells,
    cells,
    headline,
    prompt_cells,
    recommended_result,
)
from trtllm_dflash.profile.result import Profile

pytest.importorskip("matplotlib")

from trtllm_dflash.profile.curve import Curve, CurvePoint
from trtllm_dflash.profile.curve_plot import throughput_against_interactivity
from trtllm_dflash.profile.html_report import page

pytestmark = pytest.mark.slow

VOID = {"meta", "br", "path", "use"}


class Outline(HTMLParser):
    """Checks that elements close in order, and keeps texts and attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [
            value or "" for name, value in attrs if name in ("href", "src", "xlink:href")
        ]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.texts += [data.strip()] if data.strip() else []


@pytest.fixture(scope="module")
def html(found: Profile) -> str:
    """Return the report of a profile."""
    return page(found)


@pytest.fixture(scope="module")
def outline(html: str) -> Outline:
    """Return the same, parsed."""
    parsed = Outline()
    parsed.feed(html)
    assert parsed.open == []
    return parsed


def test_page_needs_no_other_resources(html: str, outline: Outline) -> None:
    assert "<script" not in html
    assert "@import" not in html
    assert all(link.startswith("#") for link in outline.links)
    assert html.count("<svg ") == 6


def test_page_has_the_figures_of_the_profile(found: Profile, outline: Outline) -> None:
    texts = outline.texts
    for sentence in advice_sentences(found):
        assert sentence in texts
    for figure, meaning in headline(found):
        assert figure in texts
        assert meaning in texts
    start = texts.index(COLUMNS[0])
    assert texts[start : start + len(COLUMNS)] == list(COLUMNS)
    row = [cell for cell in cells(found, found.results[2]) if cell]
    place = texts.index(found.results[2].system, start)
    assert texts[place : place + len(row)] == row
    assert "sentence" in texts  # a category, at its axis


def test_page_has_a_row_per_category_and_prompt(found: Profile, outline: Outline) -> None:
    drafting = [result for result in found.results if result.batch == 1 and result.draft_len]
    for row in category_cells(found, drafting):
        place = outline.texts.index(row[0])
        assert outline.texts[place : place + len(row)] == row
    result = recommended_result(found)
    for row, own, plain in zip(
        prompt_cells(found, result), result.by_prompt, found.results[0].by_prompt, strict=True
    ):
        assert row[:4] == [
            str(own.index + 1),
            own.category,
            str(own.prompt_tokens),
            str(own.tokens),
        ]
        assert float(row[-1]) == pytest.approx(
            plain.decode_seconds / own.decode_seconds, abs=0.005
        )
        assert row in [
            outline.texts[place : place + len(row)] for place in range(len(outline.texts))
        ]


def test_page_escapes_hostile_names(found: Profile) -> None:
    hostile = replace(
        found, argv=["<script>alert(1)</script>"], engine=found.engine | {"directory": "a/<b>&"}
    )
    html = page(hostile)
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert "Profile of &lt;b&gt;&amp;" in html


def test_page_has_no_colour_outside_the_theme(html: str) -> None:
    """No drawn colour is fixed: each is a variable that both themes set."""
    body = html[html.index("<main>") :]
    assert re.findall(r"#[0-9a-f]{6}\b", body) == []
    used = set(re.findall(r"var\(--(\w+)\)", html))
    assert {"ink", "plain", "series1"} <= used <= set(theme.LIGHT) == set(theme.DARK)
    assert html.count("prefers-color-scheme: dark") == 1
    assert len(set(theme.LIGHT.values())) == len(theme.LIGHT)


def test_page_is_reproducible(found: Profile, html: str) -> None:
    assert page(found) == html


def test_advice_sentences_by_case(found: Profile) -> None:
    first = found.advice.batches[0]
    assert advice_sentences(found)[0].startswith(
        f"Batch 1: verify {first.block_size} tokens a step ("
    )
    off = replace(first, draft_len=0, block_size=1)
    sentences = advice_sentences(
        replace(found, advice=replace(found.advice, batches=[off], stops_paying_at=1))
    )
    assert sentences[0].startswith("Batch 1: draft nothing: ")
    assert (
        sentences[1]
        == "From batch 1 on DFlash does not pay here: a plain engine is at least as fast."
    )
    never = replace(found, advice=replace(found.advice, stops_paying_at=None))
    assert advice_sentences(never)[-1] == "DFlash pays at batch 3, the largest that was tried."


@pytest.mark.parametrize("estimated", [False, True])
def test_save_writes_svg_and_png(estimated: bool, tmp_path: Path) -> None:
    points = tuple(
        CurvePoint.of_step(
            batch=n, draft_len=7, acceptance_length=4, step_seconds=0.004 + n / 1e4
        )
        for n in (1, 8, 64)
    )
    figure = throughput_against_interactivity(
        [Curve("DFlash", points, estimated=estimated)], log=True
    )
    theme.save(figure, tmp_path / "curve.svg")
    theme.save(figure, tmp_path / "curve.png")
    text = (tmp_path / "curve.svg").read_text()
    assert text.startswith("<svg ")
    assert "@media (prefers-color-scheme: dark)" in text
    assert ("DFlash (estimated)" in text) == estimated
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UsageError, match=r"a plot is written as \.svg or \.png"):
        theme.save(figure, tmp_path / "curve.gif")
