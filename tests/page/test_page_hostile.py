"""Output that wants to be more than text, or to hide what it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

from tests.page.conftest import Serve, ask, ended, ready, shown_text
from tests.page.mock_server import Script

pytestmark = pytest.mark.slow
Open = Callable[..., "Page"]
MARKUP = (
    "<img src=x onerror=\"document.title='owned'\">",
    "<script>document.title='owned'</script>",
    "<svg onload=\"document.title='owned'\"></svg>",
    "</div></section><form action=//evil><button>Log in</button>",
    "<a href=\"javascript:document.title='owned'\">here</a>",
    "[here](javascript:alert(1)) ![x](http://evil.example/pixel.png)",
    "<!-- &lt;b&gt; &amp; \\u003cb\\u003e {{7*7}} ${7*7}",
)


@pytest.mark.parametrize("colour", [True, False])
def test_markup_stays_text(serve: Serve, open_page: Open, colour: bool) -> None:
    steps = [[(text[:9], "target"), (text[9:] + "\n", "dflash")] for text in MARKUP]
    page = ready(open_page(serve(lambda _: Script(steps)).url))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.set_checked("#colour", colour)
    ask(page, "".join(MARKUP))
    ended(page)
    assert shown_text(page) == "".join(text + "\n" for text in MARKUP)
    assert page.locator(".prompt").evaluate("each => each.textContent") == "".join(MARKUP)
    strangers = "img, script, svg, form, a, button, iframe"
    assert page.locator(f".flow :is({strangers}), .prompt :is({strangers})").count() == 0
    assert page.title() == "dflash-trt"
    assert [url for url in asked if not url.startswith(page.url)] == []
    # Its beginning is the conversation's title, in the list and in the words of its button.
    assert "<img src=x" in page.inner_text("#conversations .title")


def test_a_hostile_reasoning_and_error_stay_text(serve: Serve, open_page: Open) -> None:
    server = serve(lambda _: Script([[(MARKUP[0], "target")]], reasoning_steps=1))
    page = ready(open_page(server.url))
    ask(page)
    ended(page)
    assert page.locator(".reasoning .flow").evaluate("e => e.textContent") == MARKUP[0]
    server.answer = lambda _: Script(refusal=(500, {"error": {"message": MARKUP[1]}}))
    ask(page)
    ended(page, "failed")
    assert page.locator(".notice").last.evaluate("e => e.textContent") == MARKUP[1]
    assert page.title() == "dflash-trt"


def test_a_hostile_model_name_stays_text(serve: Serve, open_page: Open) -> None:
    server = serve(lambda _: Script())
    server.model["id"] = MARKUP[0]
    page = ready(open_page(server.url))
    assert page.locator("#model option").evaluate("each => each.textContent") == MARKUP[0]
    assert page.locator("#model img").count() == 0
    assert page.title() == "dflash-trt"


def test_controls_are_made_visible(serve: Serve, open_page: Open) -> None:
    text = "\x1b[31mred\x1b[0m\x00\x07 a\u202eb\u2066c\x9bd\r\ne\tf"
    page = ready(open_page(serve(lambda _: Script([[(text, "target")]])).url))
    ask(page, "\u202eevil\x1b[2J")
    ended(page)
    assert shown_text(page) == "␛[31mred␛[0m␀␇ a⟨U+202E⟩b⟨U+2066⟩c⟨U+009B⟩d\ne\tf"
    assert page.inner_text(".prompt") == "⟨U+202E⟩evil␛[2J"
    assert page.inner_text("#conversations .title") == "⟨U+202E⟩evil␛[2J"


def test_writing_from_right_to_left(serve: Serve, open_page: Open) -> None:
    """Each line has its own direction, and the page keeps its own."""
    text = "שלום עולם\nHello\n"
    page = ready(open_page(serve(lambda _: Script([[(text, "target")]])).url))
    ask(page)
    ended(page)
    lefts = page.locator(".answer > .flow .block").evaluate(
        """(block) => {
          const node = document.createTreeWalker(block, NodeFilter.SHOW_TEXT).nextNode();
          const range = document.createRange();
          return [[0, 9], [10, 15]].map(([from, to]) => {
            range.setStart(node, from);
            range.setEnd(node, to);
            return range.getBoundingClientRect().left - block.getBoundingClientRect().left;
          });
        }"""
    )
    assert lefts[0] > 100
    assert lefts[1] == pytest.approx(0, abs=1)


@pytest.mark.parametrize("width", [360, 1280])
def test_long_words_do_not_widen_the_page(serve: Serve, open_page: Open, width: int) -> None:
    word = "W" * 5000
    page = ready(open_page(serve(lambda _: Script([[(word, "dflash")]])).url, width=width))
    ask(page, word)
    ended(page)
    assert shown_text(page) == word
    assert page.evaluate("() => document.documentElement.scrollWidth") == width
    wide = page.evaluate(
        """() => [...document.querySelectorAll("#stage *, #side *")]
          .filter((each) => each.getBoundingClientRect().right > innerWidth + 1
            && getComputedStyle(each).visibility === "visible")
          .map((each) => each.className)"""
    )
    assert wide == []
