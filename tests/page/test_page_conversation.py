"""A conversation: the text, its colours, its measurements, and what is asked of the server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

from tests.page.conftest import (
    STEPS,
    TEXT,
    Serve,
    ask,
    drawn_tokens,
    ended,
    ready,
    shown_text,
    visible_tokens,
)
from tests.page.mock_server import Script

pytestmark = pytest.mark.slow
Open = Callable[..., "Page"]


def plain(steps: list[Any]) -> list[Any]:
    """Return the same tokens one a step, as without drafts."""
    return [[(text, "target")] for step in steps for text, _ in step]


def by_drafts(body: dict[str, Any]) -> Script:
    """Answer with drafts or without them, as the request says."""
    return Script(plain(STEPS) if body.get("draft") is False else STEPS, cached_tokens=12)


def test_colours_are_the_streams_own(serve: Serve, open_page: Open) -> None:
    page = ready(open_page(serve(by_drafts).url))
    ask(page)
    ended(page)
    assert shown_text(page) == TEXT
    assert drawn_tokens(page) == visible_tokens(STEPS)
    titles = page.locator(".answer .token").evaluate_all("all => all.map(each => each.title)")
    assert titles[1] == "from the drafter · step 1, 3 tokens"


def test_colours_go_and_come_back(serve: Serve, open_page: Open) -> None:
    page = ready(open_page(serve(by_drafts).url))
    ask(page)
    ended(page)
    page.click("text=Colour tokens")
    page.wait_for_selector(".answer .token", state="detached")
    assert shown_text(page) == TEXT
    assert page.locator("#legend").is_hidden()
    page.click("text=Colour tokens")
    page.wait_for_selector(".answer .token")
    assert drawn_tokens(page) == visible_tokens(STEPS)


def test_colours_differ_by_more_than_colour(serve: Serve, open_page: Open) -> None:
    page = ready(open_page(serve(by_drafts).url))
    styles = page.locator("#legend .token").evaluate_all(
        "all => all.map(each => getComputedStyle(each).textDecorationLine"
        " + ' ' + getComputedStyle(each).textDecorationStyle)"
    )
    assert styles == ["none solid", "underline solid", "underline dotted"]


def test_measurements_are_those_of_the_stream(serve: Serve, open_page: Open) -> None:
    page = ready(open_page(serve(by_drafts).url))
    ask(page)
    ended(page)
    page.wait_for_selector("#measured[data-state=done]")
    assert page.text_content("#figure-acceptance") == "2.75"  # 11 tokens in 4 steps
    assert page.text_content("#figure-cached") == "12"
    assert page.text_content("#figure-prompt") == " of 40"
    shares = page.locator("#histogram tbody tr td:last-child").all_text_contents()
    assert shares == ["25 %", "0 %", "50 %", "25 %", "0 %", "0 %", "0 %", "0 %"]
    counts = [page.text_content(f"#count-{letter}") for letter in "tdl"]
    assert counts == ["5", "4", "3"]
    assert page.text_content("#verified-d") == "4 of 8 drafts accepted"
    assert page.text_content("#strip-label") == "4 steps gave 12 tokens"


def test_figures_move_while_the_answer_grows(serve: Serve, open_page: Open) -> None:
    page = ready(open_page(serve(lambda _: Script(STEPS * 240, pause=0.05)).url))
    ask(page)
    page.wait_for_selector(".answer[data-state=running] .figures:has-text('tokens/s')")
    page.wait_for_selector("#measured[data-state=running]")
    assert page.text_content("#figure-acceptance") != "–"
    page.keyboard.press("Escape")
    ended(page, "stopped")


def test_side_by_side_asks_twice(serve: Serve, open_page: Open) -> None:
    server = serve(by_drafts)
    page = ready(open_page(server.url))
    page.fill("[name=temperature]", "0.7")
    page.check("#mode-pair")
    ask(page)
    ended(page, nth=1)
    without, with_drafts = server.seen.bodies
    assert without.pop("draft") is False
    assert without == with_drafts
    assert isinstance(without["seed"], int)  # one for both: else they could not be equal
    assert shown_text(page, 0) == shown_text(page, 1) == TEXT
    assert set(drawn_tokens(page, 0)) == {(t, "t") for step in STEPS for t, _ in step if t}
    verdict = page.text_content(".verdict")
    assert verdict is not None
    assert "4 steps instead of 11" in verdict
    assert "the two texts are equal" in verdict


def test_side_by_side_tells_texts_apart(serve: Serve, open_page: Open) -> None:
    def answer(body: dict[str, Any]) -> Script:
        return by_drafts(body) if "draft" in body else Script([[("Fruits", "target")]])

    page = ready(open_page(serve(answer).url))
    page.check("#mode-pair")
    ask(page)
    ended(page, nth=1)
    assert "the texts part at character 6" in (page.text_content(".verdict") or "")


def test_side_by_side_one_after_the_other(serve: Serve, open_page: Open) -> None:
    running, most = [0], [0]

    def answer(body: dict[str, Any]) -> Script:
        running[0] += 1
        most[0] = max(most[0], running[0])

        def steps() -> Any:
            yield from by_drafts(body).steps
            running[0] -= 1

        return Script(steps(), pause=0.01)

    page = ready(open_page(serve(answer).url))
    page.check("#mode-pair")
    ask(page)
    ended(page, nth=1)
    assert most[0] == 1


def test_a_replay_shows_both_at_once(serve: Serve, open_page: Open) -> None:
    """Each grows as fast as it came: the one with drafts has ended while the other grows."""
    page = ready(open_page(serve(lambda body: replace(by_drafts(body), pause=0.08)).url))
    page.check("#mode-pair")
    ask(page)
    ended(page, nth=1)
    verdict = page.inner_text(".verdict")
    # The browser itself looks: from here one may look too late.
    page.evaluate(
        """() => {
          window.seen = [];
          const look = () => {
            const states = [...document.querySelectorAll(".answer")];
            const { hidden } = document.querySelector(".verdict");
            seen.push([...states.map((each) => each.dataset.state), hidden]);
          };
          const what = { subtree: true, childList: true, attributes: true };
          new MutationObserver(look).observe(document.querySelector(".turn"), what);
        }"""
    )
    page.click("text=Replay both at once")
    page.wait_for_selector("text=Replay both at once", state="hidden")
    page.wait_for_selector("text=Replay both at once")
    seen = page.evaluate("() => seen")
    assert ["running", "done", True] in seen
    # The comparison is hidden as long as one of them grows.
    assert all(hidden for *states, hidden in seen if "running" in states)
    assert shown_text(page, 0) == shown_text(page, 1) == TEXT
    assert page.inner_text(".verdict") == verdict


def test_side_by_side_knows_that_it_was_not_alone(serve: Serve, open_page: Open) -> None:
    """A step has one number of drafts for all its requests: those of others bring theirs."""
    page = ready(open_page(serve(lambda _: Script(STEPS)).url))
    page.check("#mode-pair")
    ask(page)
    ended(page, nth=1)
    assert page.inner_text(".verdict").startswith("Other requests shared the engine")


def test_reasoning_is_apart(serve: Serve, open_page: Open) -> None:
    page = ready(open_page(serve(lambda _: Script(STEPS, reasoning_steps=2)).url))
    ask(page)
    ended(page)
    assert page.locator(".reasoning .flow").evaluate("e => e.textContent") == "Fruit is sweet."
    assert shown_text(page) == TEXT.removeprefix("Fruit is sweet.")
    assert page.locator(".reasoning").get_attribute("open") is None
    page.click(".reasoning summary")
    assert page.locator(".reasoning .flow").is_visible()


def test_requests_hold_the_settings(serve: Serve, open_page: Open) -> None:
    server = serve(by_drafts)
    page = ready(open_page(server.url))
    ask(page)
    ended(page)
    page.fill("[name=temperature]", "0.5")
    page.fill("[name=top_p]", "0.9")
    page.fill("[name=seed]", "7")
    page.fill("[name=max_tokens]", "33")
    page.select_option("[name=drafts]", "lookup")
    page.select_option("[name=draft_len]", "3")
    page.select_option("[name=effort]", "low")
    page.fill("[name=system]", "Be brief.")
    ask(page, "And another one?")
    ended(page, nth=1)
    first, second = server.seen.bodies
    assert first == {
        "model": "demo",
        "messages": [{"role": "user", "content": "Name a fruit."}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "dflash": {"tokens": True},
        "temperature": 0,
        "max_tokens": 1024,
    }
    assert second["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Name a fruit."},
        {"role": "assistant", "content": TEXT},
        {"role": "user", "content": "And another one?"},
    ]
    wanted = {"temperature": 0.5, "top_p": 0.9, "seed": 7, "max_tokens": 33}
    wanted |= {"drafts": "lookup", "draft_len": 3, "reasoning_effort": "low"}
    assert {name: second[name] for name in wanted} == wanted


def test_a_wrong_setting_sends_nothing(serve: Serve, open_page: Open) -> None:
    server = serve(by_drafts)
    page = ready(open_page(server.url))
    page.fill("[name=temperature]", "-1")
    ask(page)
    page.wait_for_selector("[name=temperature]:focus")
    assert server.seen.bodies == []
    assert page.input_value("#prompt") == "Name a fruit."


def test_copy_takes_the_text_itself(serve: Serve, open_page: Open) -> None:
    server = serve(lambda _: Script([[("a\x1b[31m\u202eb", "target")]]))
    page = ready(open_page(server.url, permissions=["clipboard-read", "clipboard-write"]))
    ask(page)
    ended(page)
    page.click("text=Copy")
    page.wait_for_selector("text=Copied")
    assert page.evaluate("() => navigator.clipboard.readText()") == "a\x1b[31m\u202eb"
