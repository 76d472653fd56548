"""The page without a mouse, and for those who do not see it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

from tests.page.conftest import STEPS, TEXT, Serve, ask, ended, ready, shown_text
from tests.page.mock_server import Script

pytestmark = pytest.mark.slow
Open = Callable[..., "Page"]


def from_the_top(page: Page) -> None:
    """Let the next Tab lead to the first control of the page."""
    page.evaluate(
        "() => { document.activeElement.blur(); getSelection().setPosition(document.body, 0); }"
    )


def focused(page: Page) -> str:
    """Return what has the focus, in a word."""
    found: str = page.evaluate(
        "() => document.activeElement.id || document.activeElement.name"
        " || document.activeElement.className"
    )
    return found


def test_a_conversation_by_keyboard_alone(serve: Serve, open_page: Open) -> None:
    server = serve(lambda _: Script(STEPS))
    page = ready(open_page(server.url))
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    page.keyboard.press("Enter")
    ended(page)
    assert server.seen.bodies[0]["messages"][0]["content"] == "one\ntwo"
    assert focused(page) == "prompt"
    server.answer = lambda _: Script(STEPS * 200, pause=0.05)
    page.keyboard.type("again")
    page.keyboard.press("Enter")
    page.wait_for_selector("#stop")
    page.keyboard.press("Escape")
    ended(page, "stopped")


def test_every_control_is_reached_and_seen(serve: Serve, open_page: Open) -> None:
    page = ready(open_page(serve(lambda _: Script(STEPS)).url))
    ask(page)
    ended(page)
    from_the_top(page)
    reached, unseen = set(), []
    for _ in range(60):
        page.keyboard.press("Tab")
        here = focused(page)
        reached.add(here)
        has_mark = page.evaluate(
            """() => {
              const focused = document.activeElement;
              const marked = [focused, focused.nextElementSibling, focused.closest(".entry")];
              return marked.filter(Boolean).some((each) => {
                const style = getComputedStyle(each);
                return style.outlineStyle !== "none" || style.boxShadow !== "none";
              });
            }"""
        )
        if not has_mark and here:
            unseen.append(here)
    assert unseen == []
    wanted = {"skip", "new-chat", "open", "drop", "model", "mode-chat", "colour", "scroller"}
    wanted |= {"prompt", "send", "temperature", "system", "api_key", "theme", "reset-settings"}
    assert wanted <= reached, wanted - reached


def test_the_skip_link_leads_to_the_prompt(serve: Serve, open_page: Open) -> None:
    page = ready(open_page(serve(lambda _: Script(STEPS)).url))
    first = page.evaluate_handle("() => document.querySelector('a[href], button, input')")
    first.as_element().focus()  # type: ignore[union-attr]
    assert focused(page) == "skip"
    page.wait_for_timeout(50)
    assert page.locator(".skip").bounding_box()["y"] > 0  # type: ignore[index]
    page.keyboard.press("Enter")
    assert focused(page) == "prompt"


def test_answers_are_announced_in_sentences(serve: Serve, open_page: Open) -> None:
    page = ready(open_page(serve(lambda _: Script(STEPS, pause=0.02)).url))
    page.evaluate(
        """() => {
          window.said = [];
          const region = document.querySelector("#announcements");
          new MutationObserver(() => said.push(region.textContent)).observe(region, {
            childList: true,
          });
        }"""
    )
    ask(page)
    ended(page)
    page.wait_for_function("() => said.join(' ').includes('End of the answer.')")
    said = page.evaluate("() => said")
    assert len(said) <= 4
    assert "Fruit is sweet." in " ".join(said)
    assert page.get_attribute("#announcements", "aria-live") == "polite"
    assert page.locator("#scroller [aria-live]").count() == 0  # tokens by themselves are noise


def test_axe_finds_nothing(serve: Serve, open_page: Open) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    found = {}
    for theme in ("light", "dark"):
        page = ready(open_page(serve(lambda _: Script(STEPS)).url, color_scheme=theme))
        found[f"{theme}, empty"] = violations(axe, page)
        page.check("#mode-pair")
        ask(page)
        ended(page, nth=1)
        page.wait_for_selector(".verdict")
        found[f"{theme}, a pair"] = violations(axe, page)
        page.set_viewport_size({"width": 360, "height": 740})
        found[f"{theme}, narrow"] = violations(axe, page)
        page.click("#open-panel")
        page.wait_for_timeout(400)
        found[f"{theme}, drawer"] = violations(axe, page)
    assert {where: what for where, what in found.items() if what} == {}


def violations(axe: object, page: Page) -> list[str]:
    """Return what axe finds, with the first element of each."""
    result = axe.Axe().run(page)  # type: ignore[attr-defined]
    return [
        f"{each['id']}: {each['nodes'][0]['html'][:120]} {each['nodes'][0]['failureSummary']}"
        for each in result.response["violations"]
    ]


def test_words_for_everything_that_is_pressed(serve: Serve, open_page: Open) -> None:
    page = ready(open_page(serve(lambda _: Script(STEPS)).url))
    ask(page)
    ended(page)
    assert shown_text(page) == TEXT
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, textarea")]
          .filter((each) => !(each.getAttribute("aria-label") || each.textContent.trim()
            || [...(each.labels ?? [])].some((label) => label.textContent.trim())))
          .map((each) => each.outerHTML)"""
    )
    assert nameless == []
