"""The page on the real server, with the demo pair."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from tests.conftest import DEMO
from tests.http_server.running import Running
from tests.page.conftest import ask, drawn_tokens, ended, ready, shown_text, streamed
from trtllm_dflash.runtime.engine import Engine

pytestmark = [pytest.mark.slow, pytest.mark.demo]
Open = Callable[..., "Page"]
PROMPT = "Name three fruits."


@pytest.fixture(scope="module")
def demo() -> Iterator[Running]:
    with Running({"demo": Engine.load(DEMO / "cpu", prefix_cache_mib=64)}) as running:
        yield running


def opened(open_page: Open, server: Running) -> Page:
    page = ready(open_page(server.url))
    page.fill("[name=max_tokens]", "64")
    return page


@pytest.mark.parametrize("drafts", ["", "both", "lookup", "off"])
def test_demo_colours_are_the_streams(demo: Running, open_page: Open, drafts: str) -> None:
    options: dict[str, Any] = {"drafts": drafts} if drafts else {}
    if drafts == "off":
        options = {"draft": False}
    tokens, last = streamed(demo, PROMPT, max_tokens=64, **options)
    page = opened(open_page, demo)
    page.select_option("[name=drafts]", drafts)
    ask(page, PROMPT)
    ended(page)
    wanted = [(token["text"], token["source"][0]) for token in tokens if token["text"]]
    assert drawn_tokens(page) == wanted
    assert shown_text(page) == "".join(token["text"] for token in tokens)
    summary = last["dflash"]
    page.wait_for_selector("#measured[data-state=done]")
    shown = float(page.text_content("#figure-acceptance") or "nan")
    assert shown == pytest.approx(summary["acceptance_length"], abs=0.005)
    steps = sum(summary["acceptance_histogram"])
    shares = page.locator("#histogram tbody tr td:last-child").all_text_contents()
    counts = summary["acceptance_histogram"] + [0] * len(shares)
    assert shares == [f"{int(100 * count / steps + 0.5)} %" for count in counts[: len(shares)]]
    assert f"{summary['steps']} steps gave {len(tokens)} tokens" in page.inner_text(".strip")


def test_demo_side_by_side_has_one_text(demo: Running, open_page: Open) -> None:
    page = opened(open_page, demo)
    page.fill("[name=temperature]", "0.8")
    page.check("#mode-pair")
    ask(page, PROMPT)
    ended(page, nth=1)
    assert shown_text(page, 0) == shown_text(page, 1) != ""
    assert {letter for _, letter in drawn_tokens(page, 0)} == {"t"}
    assert {letter for _, letter in drawn_tokens(page, 1)} > {"t"}
    verdict = page.inner_text(".verdict")
    assert "the two texts are equal" in verdict
    counts = re.search(r"(\d+) steps instead of (\d+)", verdict)
    assert counts is not None
    assert int(counts[1]) < int(counts[2])


def test_demo_stop_frees_the_slot(demo: Running, open_page: Open) -> None:
    page = opened(open_page, demo)
    page.fill("[name=max_tokens]", "1500")
    ask(page, "Count from one to one thousand.")
    page.wait_for_selector(".answer .token")
    page.keyboard.press("Escape")
    ended(page, "stopped")
    # The module's server fails at its end if a slot is still taken.
    ask(page, PROMPT)
    ended(page)


def test_demo_second_turn_hits_the_prefix_cache(demo: Running, open_page: Open) -> None:
    page = opened(open_page, demo)
    ask(page, PROMPT)
    ended(page)
    ask(page, "And three more.")
    ended(page, nth=1)
    page.wait_for_selector("#measured[data-state=done]")
    assert int(page.text_content("#figure-cached") or "0") > 0


def test_demo_errors_are_the_servers_own(demo: Running, open_page: Open) -> None:
    page = opened(open_page, demo)
    ask(page, "word " * 3000)
    ended(page, "failed")
    assert "tokens" in page.inner_text(".notice")
    assert page.evaluate("() => document.querySelector('#prompt').value") == ""
    assert page.locator(".prompt").evaluate("each => each.textContent.length") == 15_000
