"""What the browser keeps: conversations, settings, and never the API key."""

from __future__ import annotations

import json
from collections.abc import Callable
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


def fruit(body: dict[str, Any]) -> Script:
    """Answer with the usual steps."""
    return Script(STEPS, cached_tokens=12)


def stored(page: Page) -> dict[str, Any]:
    """Return all that the browser keeps for the page."""
    found: dict[str, str] = page.evaluate("() => ({...localStorage})")
    return {key: json.loads(value) for key, value in found.items() if value[0] in '{["'}


def test_a_conversation_outlives_a_reload(serve: Serve, open_page: Open) -> None:
    page = ready(open_page(serve(fruit).url))
    ask(page)
    ended(page)
    before = page.locator("#measured").inner_text()
    page.reload()
    ready(page)
    page.click("#conversations .open")
    page.wait_for_selector(".answer .token")
    assert shown_text(page) == TEXT
    assert drawn_tokens(page) == visible_tokens(STEPS)
    assert page.locator("#measured").inner_text() == before


def test_a_new_conversation_is_empty(serve: Serve, open_page: Open) -> None:
    server = serve(fruit)
    page = ready(open_page(server.url))
    ask(page)
    ended(page)
    page.click("#new-chat")
    assert page.locator("#welcome").is_visible()
    ask(page, "And now?")
    ended(page)
    assert [len(body["messages"]) for body in server.seen.bodies] == [1, 1]
    titles = page.locator("#conversations .title").all_text_contents()
    assert titles == ["And now?", "Name a fruit."]


def test_a_deleted_conversation_can_be_had_back(serve: Serve, open_page: Open) -> None:
    page = ready(open_page(serve(fruit).url))
    ask(page)
    ended(page)
    page.hover("#conversations li")
    page.click("#conversations .drop")
    page.wait_for_selector("#no-conversations")
    assert page.locator("#welcome").is_visible()
    assert [key for key in stored(page) if key.startswith("dflash.chat")] == []
    page.click("text=Undo")
    page.wait_for_selector("#conversations .title:has-text('Name a fruit.')")
    assert shown_text(page) == TEXT


def test_history_is_bounded(serve: Serve, open_page: Open) -> None:
    page = ready(open_page(serve(fruit).url))
    page.evaluate(
        """() => {
          for (let n = 0; n < 70; n += 1) {
            const kept = { id: `old-${n}`, title: `Number ${n}`, updated: n, turns: [] };
            localStorage.setItem(`dflash.chat.old-${n}`, JSON.stringify(kept));
          }
        }"""
    )
    ask(page)
    ended(page)
    kept = [value for key, value in stored(page).items() if key.startswith("dflash.chat")]
    assert len(kept) == 50
    assert min(each["updated"] for each in kept) == 21  # the oldest ones went


def test_history_that_fills_the_storage(serve: Serve, open_page: Open) -> None:
    """Conversations give way; what other pages of this origin hold stays."""
    page = ready(open_page(serve(fruit).url))
    page.evaluate(
        """() => {
          localStorage.setItem("another page's", "x".repeat(4_700_000));
          const kept = { id: "old", title: "x".repeat(400_000), updated: 1, turns: [] };
          localStorage.setItem("dflash.chat.old", JSON.stringify(kept));
        }"""
    )
    ask(page, "y" * 300_000)
    ended(page)
    keys = page.evaluate("() => Object.keys(localStorage)")
    assert "another page's" in keys
    assert "dflash.chat.old" not in keys
    assert page.locator("#conversations li").count() == 1


def test_damaged_storage_is_no_obstacle(serve: Serve, open_page: Open) -> None:
    page = ready(open_page(serve(fruit).url))
    page.evaluate(
        """() => {
          localStorage.setItem("dflash.chat.a", "{");
          localStorage.setItem("dflash.chat.b", '{"id": 5}');
          localStorage.setItem("dflash.settings", '{"temperature": {}, "drafts": "none"}');
          localStorage.setItem("dflash.view", "[]");
        }"""
    )
    page.reload()
    ready(page)
    ask(page)
    ended(page)
    assert shown_text(page) == TEXT
    assert page.input_value("[name=drafts]") == ""


def test_settings_and_prompt_outlive_a_reload(serve: Serve, open_page: Open) -> None:
    page = ready(open_page(serve(fruit).url))
    page.fill("[name=temperature]", "0.4")
    page.select_option("[name=draft_len]", "5")
    page.check("[value=dark]")
    page.fill("#prompt", "half a thou")
    page.reload()
    ready(page)
    assert page.input_value("[name=temperature]") == "0.4"
    assert page.input_value("[name=draft_len]") == "5"
    assert page.input_value("#prompt") == "half a thou"
    assert page.get_attribute("html", "data-theme") == "dark"
    page.click("#reset-settings")
    assert page.input_value("[name=temperature]") == "0"


def test_the_api_key_is_kept_nowhere(serve: Serve, open_page: Open) -> None:
    server = serve(fruit)
    server.api_key = "sesame-7"
    page = open_page(server.url)
    page.wait_for_selector("#server-state[data-state=locked]")
    assert "API key" in page.inner_text("#server-notice")
    page.fill("[name=api_key]", "sesame-7")
    page.press("[name=api_key]", "Tab")
    ready(page)
    ask(page)
    ended(page)
    assert server.seen.keys == ["Bearer sesame-7"]
    assert "sesame-7" not in json.dumps(page.evaluate("() => ({...localStorage})"))
    page.reload()
    page.wait_for_selector("#server-state[data-state=locked]")
    assert page.input_value("[name=api_key]") == ""
