"""Stops, refusals, and a server that goes away and comes back."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

from tests.page.conftest import STEPS, TEXT, Serve, ask, ended, ready, shown_text
from tests.page.mock_server import MockServer, Script, mock_server
from tests.patience import wait_for

pytestmark = pytest.mark.slow
Open = Callable[..., "Page"]


def endless(body: dict[str, Any]) -> Script:
    """Answer for a minute."""
    return Script(STEPS * 240, pause=0.05)


@pytest.mark.parametrize("how", ["button", "escape"])
def test_stop_ends_the_stream(serve: Serve, open_page: Open, how: str) -> None:
    server = serve(endless)
    page = ready(open_page(server.url))
    ask(page)
    page.wait_for_selector(".answer .token.d")
    if how == "button":
        page.click("#stop")
    else:
        page.keyboard.press("Escape")
    ended(page, "stopped")
    assert shown_text(page).startswith("Fruit is sweet.")
    assert page.locator("#send").is_visible()
    wait_for(lambda: server.seen.num_broken == 1)  # the server notices when it writes
    # What had come is part of the conversation.
    server.answer = lambda _: Script(STEPS)
    ask(page, "Go on.")
    ended(page)
    roles = [message["role"] for message in server.seen.bodies[-1]["messages"]]
    assert roles == ["user", "assistant", "user"]


def test_a_cut_connection_keeps_what_came(serve: Serve, open_page: Open) -> None:
    server = serve(lambda _: Script(STEPS, break_after=3))
    page = ready(open_page(server.url))
    ask(page)
    ended(page, "failed")
    assert shown_text(page) == "Fruit is sweet.\n"
    assert "went away in the middle" in page.inner_text(".notice")
    server.answer = lambda _: Script(STEPS)
    page.click("text=Try again")
    ended(page)
    assert shown_text(page) == TEXT
    assert server.seen.bodies[0] == server.seen.bodies[1]
    assert page.locator(".turn").count() == 1


def test_a_server_goes_away_and_comes_back(open_page: Open) -> None:
    with mock_server(endless) as server:
        page = ready(open_page(server.url))
        ask(page)
        page.wait_for_selector(".answer .token.d")
        _hang_up(server)
        ended(page, "failed")
    page.wait_for_selector("#server-state[data-state=gone]")
    assert "cannot be reached" in page.inner_text("#server-notice")
    assert shown_text(page).startswith("Fruit is sweet.")
    page.fill("#prompt", "a thought meanwhile")
    page.click("text=Try again")
    ended(page, "failed")
    assert "cannot be reached" in page.inner_text(".notice")
    port = server.server_address[1]
    with mock_server(lambda _: Script(STEPS), port=port):
        ready(page)
        assert page.locator("#server-notice").is_hidden()
        page.wait_for_selector("text=The server is back.")
        page.click("text=Try again")
        ended(page)
        assert shown_text(page) == TEXT
        assert page.input_value("#prompt") == "a thought meanwhile"


def _hang_up(server: MockServer) -> None:
    """Let every stream end in its middle, and take no more connections."""
    server.is_hung_up = True
    server.socket.close()


def test_refusals_are_in_the_servers_words(serve: Serve, open_page: Open) -> None:
    error = {"error": {"message": "messages: this makes 3000 tokens <b>too many</b>."}}
    server = serve(lambda _: Script(refusal=(400, error)))
    page = ready(open_page(server.url))
    ask(page)
    ended(page, "failed")
    assert page.inner_text(".notice") == "messages: this makes 3000 tokens <b>too many</b>."
    # A turn without an answer is not sent again with the next one.
    server.answer = lambda _: Script(STEPS)
    ask(page, "Shorter.")
    ended(page)
    assert len(server.seen.bodies[-1]["messages"]) == 1


def test_one_of_a_pair_may_fail(serve: Serve, open_page: Open) -> None:
    error = {"error": {"message": "the queue is full."}}

    def answer(body: dict[str, Any]) -> Script:
        return Script(STEPS) if "draft" in body else Script(refusal=(429, error))

    page = ready(open_page(serve(answer).url))
    page.check("#mode-pair")
    ask(page)
    ended(page, "failed")
    assert page.locator(".answer[data-state=done]").count() == 1
    assert page.locator(".verdict").is_hidden()
    assert page.locator("text=Try again").is_visible()


def test_a_run_goes_on_behind_another_chat(serve: Serve, open_page: Open) -> None:
    page = ready(open_page(serve(lambda _: Script(STEPS * 8, pause=0.05)).url))
    ask(page)
    page.wait_for_selector(".answer .token.d")
    page.click("#new-chat")
    assert page.locator(".turn").count() == 0
    page.wait_for_selector("body[data-running=false]")
    page.click("#conversations .open")
    page.wait_for_selector(".answer .token")
    assert shown_text(page) == TEXT * 8
