"""The page on a telephone, 360 pixels wide."""

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


@pytest.fixture
def phone(serve: Serve, open_page: Open) -> Page:
    server = serve(lambda _: Script(STEPS, cached_tokens=12))
    return ready(open_page(server.url, width=360, height=640))


def sideways(page: Page) -> int:
    """Return by how many pixels the page is wider than the screen."""
    width: int = page.evaluate("() => document.documentElement.scrollWidth - innerWidth")
    return width


def test_nothing_scrolls_sideways(phone: Page) -> None:
    assert sideways(phone) == 0
    phone.check("#mode-pair")
    ask(phone)
    ended(phone, nth=1)
    assert sideways(phone) == 0
    assert shown_text(phone, 1) == TEXT
    boxes = [each.bounding_box() for each in phone.locator(".answer").all()]
    assert boxes[0]["width"] == boxes[1]["width"] > 300  # type: ignore[index]
    assert boxes[0]["x"] == boxes[1]["x"]  # type: ignore[index]


def test_sides_are_drawers(phone: Page) -> None:
    assert not phone.locator("#panel").is_visible()
    assert not phone.locator("#new-chat").is_visible()
    ask(phone)
    ended(phone)
    phone.click("#open-side")
    assert phone.get_attribute("#open-side", "aria-expanded") == "true"
    phone.wait_for_selector("#conversations .title", state="visible")
    phone.keyboard.press("Escape")
    phone.wait_for_selector("#new-chat", state="hidden")
    assert phone.evaluate("() => document.activeElement.id") == "open-side"
    phone.click(".answer .buttons button:has-text('Measurements')")
    phone.wait_for_selector("#figure-acceptance:has-text('2.75')")
    phone.wait_for_timeout(300)
    phone.mouse.click(5, 300)  # beside the drawer
    phone.wait_for_selector("#panel", state="hidden")


def test_a_drawer_keeps_the_tab_key(phone: Page) -> None:
    phone.click("#open-panel")
    phone.wait_for_timeout(300)
    outside = []
    for _ in range(20):
        phone.keyboard.press("Tab")
        outside.append(
            phone.evaluate("() => document.activeElement.closest('#stage') !== null")
        )
    assert not any(outside)


def test_targets_are_large_enough_for_a_finger(phone: Page) -> None:
    ask(phone)
    ended(phone)
    small = phone.evaluate(
        """() => [...document.querySelectorAll("#stage button, #stage .switch, #stage select")]
          .map((each) => [each.id || each.textContent, each.getBoundingClientRect()])
          .filter(([, box]) => box.width && (box.width < 24 || box.height < 24))
          .map(([name, box]) => `${name}: ${box.width} x ${box.height}`)"""
    )
    assert small == []


def test_a_finger_sees_what_it_can_delete(serve: Serve, open_page: Open) -> None:
    server = serve(lambda _: Script(STEPS))
    page = ready(open_page(server.url, width=360, height=640, has_touch=True, is_mobile=True))
    ask(page)
    ended(page)
    page.tap("#open-side")
    page.wait_for_selector("#conversations .title", state="visible")
    assert page.locator(".drop").evaluate("each => getComputedStyle(each).opacity") == "1"
