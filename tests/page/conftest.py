"""The page in a real browser: headless Chromium, driven by Playwright."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

    from tests.http_server.running import Running

from tests.page.mock_server import MockServer, Script, Tokens, mock_server
from tests.patience import PATIENCE

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Written by the browser itself where a server is away or refuses, as some tests want it.
EXPECTED_ERRORS = ("Failed to load resource",)
Serve = Callable[[Callable[[dict[str, Any]], Script]], MockServer]


def chromium() -> str | None:
    """Return the browser's program: that of DFLASH_CHROMIUM, or the system's."""
    named = os.environ.get("DFLASH_CHROMIUM")
    return named or next((path for name in NAMES if (path := shutil.which(name))), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Start the browser; without one the test is skipped, for no package index has it.

    It ends with the module: its event loop runs in this thread, and other tests have their own.
    DFLASH_REQUIRE_BROWSER=1 makes it fail instead.
    """
    path, required = chromium(), os.environ.get("DFLASH_REQUIRE_BROWSER") == "1"
    find = import_module if required else pytest.importorskip
    api = find("playwright.sync_api")  # a package like others: DFLASH_REQUIRE_ALL=1 wants it
    if path is None and not required:
        pytest.skip("no Chromium: apt-get install chromium, or set DFLASH_CHROMIUM")
    with api.sync_playwright() as playwright:
        # As root, as in a container, Chromium has no sandbox; all that it opens is ours.
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """`open_page(url, width=, height=)` is a new page; it must report no error of its own."""
    problems: list[str] = []
    contexts = []

    def open_one(url: str, width: int = 1280, height: int = 800, **options: Any) -> Page:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        context.set_default_timeout(1000 * PATIENCE)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on(
            "console",
            lambda message: problems.append(message.text) if message.type == "error" else None,
        )
        page.goto(url)
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert [each for each in problems if not each.startswith(EXPECTED_ERRORS)] == []


@pytest.fixture
def serve() -> Iterator[Serve]:
    """`serve(answer)` runs a mock server until the test ends."""
    running = []

    def start(answer: Callable[[dict[str, Any]], Script]) -> MockServer:
        context = mock_server(answer)
        running.append(context)
        return context.__enter__()

    yield start
    for context in running:
        context.__exit__(None, None, None)


STEPS: list[Tokens] = [
    [("Fruit", "target")],
    [(" is", "dflash"), (" sweet", "dflash"), (".", "target")],
    [("\n", "target")],
    [(" is", "lookup"), (" sweet", "lookup"), (".", "lookup"), (" So", "target")],
    [("", "dflash"), (" é", "dflash"), ("!", "target")],
]
TEXT = "".join(text for step in STEPS for text, _ in step)


def ready(page: Page) -> Page:
    """Wait until the page has found its server."""
    page.wait_for_selector("#server-state[data-state=ready]")
    return page


def ask(page: Page, prompt: str = "Name a fruit.") -> None:
    """Send a prompt as a person does."""
    page.fill("#prompt", prompt)
    page.press("#prompt", "Enter")


def ended(page: Page, state: str = "done", nth: int = 0) -> None:
    """Wait until an answer has ended in this state."""
    page.wait_for_selector(f".answer[data-state={state}] >> nth={nth}", state="attached")
    page.wait_for_selector("body[data-running=false]")


def drawn_tokens(page: Page, answer: int = 0) -> list[tuple[str, str]]:
    """Return text and letter of each coloured token of an answer."""
    found = page.evaluate(
        """(answer) => {
          const flow = document.querySelectorAll(".answer > .flow")[answer];
          const spans = [...flow.querySelectorAll(".token")];
          return spans.map((span) => [span.textContent, span.className.split(" ")[1]]);
        }""",
        answer,
    )
    return [(text, letter) for text, letter in found]


def streamed(
    server: Running, prompt: str, **options: Any
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the tokens and the last chunk of a chat's stream, asked as the page does."""
    body = {
        "stream": True,
        "stream_options": {"include_usage": True},
        "dflash": {"tokens": True},
        "temperature": 0,
    }
    tokens: list[dict[str, Any]] = []
    last: dict[str, Any] = {}
    for line in server.chat(prompt, **body, **options).text.splitlines():
        if line.startswith("data: {"):
            last = json.loads(line.removeprefix("data: "))
            tokens += last["dflash"]["tokens"] if last["choices"] else []
    return tokens, last


def shown_text(page: Page, answer: int = 0) -> str:
    """Return the text of an answer, as the document has it."""
    text: str = page.locator(".answer > .flow").nth(answer).evaluate("each => each.textContent")
    return text


def visible_tokens(steps: list[Tokens]) -> list[tuple[str, str]]:
    """Return what `drawn_tokens` must be for these steps."""
    return [(text, source[0]) for step in steps for text, source in step if text]
