"""An answer of 20,000 tokens: the page stays as quick as at its beginning."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

from tests.page.conftest import Serve, ask, ended, ready, shown_text
from tests.page.mock_server import Script, Tokens

pytestmark = pytest.mark.slow
Open = Callable[..., "Page"]
NUM_TOKENS = 20_000


def long_steps(seed: int, *, lines: bool = True) -> list[Tokens]:
    """Return steps of 1 to 6 tokens, with a line's end now and then, or never."""
    dice = random.Random(seed)
    steps: list[Tokens] = []
    left = NUM_TOKENS
    while left:
        source = dice.choice(["dflash", "dflash", "lookup"])
        size = min(left, dice.randint(1, 6))
        left -= size
        step = [(" " + "x" * dice.randint(1, 7), source) for _ in range(size - 1)]
        end = "\n" if lines and dice.random() < 0.1 else "."
        steps.append([*step, (end, "target")])
    return steps


def busy_clock(page: Page) -> Callable[[], float]:
    """Return a clock of the seconds in which the page's main thread had work."""
    client = page.context.new_cdp_session(page)
    client.send("Performance.enable", {"timeDomain": "threadTicks"})

    def busy_seconds() -> float:
        metrics = client.send("Performance.getMetrics")["metrics"]
        found = next(each for each in metrics if each["name"] == "TaskDuration")
        return float(found["value"])

    return busy_seconds


def test_measured_time_does_not_grow(serve: Serve, open_page: Open) -> None:
    """The second half takes about as much of the main thread as the first one."""
    steps = long_steps(1)
    gates: list[float] = []
    quarter = len(steps) // 4

    def paced() -> Iterator[Tokens]:
        # The next quarter waits until the page has drawn this one.
        for number, step in enumerate(steps):
            while number >= quarter * len(gates):
                time.sleep(0.01)
            yield step

    page = ready(open_page(serve(lambda _: Script(paced())).url))
    busy = busy_clock(page)
    page.evaluate(
        """() => {
          window.longest = 0;
          new PerformanceObserver((list) => {
            for (const each of list.getEntries()) longest = Math.max(longest, each.duration);
          }).observe({ type: "longtask" });
        }"""
    )
    gates.append(busy())
    ask(page)
    totals = [sum(len(step) for step in steps[: quarter * n]) for n in range(1, 5)]
    for total in totals:
        words = f"{total:,} tokens"
        page.wait_for_selector(f"#strip-label:has-text('{words}')")
        page.wait_for_timeout(300)
        gates.append(busy())
    gates.append(busy())  # opens the gate for the few steps behind the last quarter
    ended(page)
    spent = [after - before for before, after in pairwise(gates)]
    report = {"seconds": spent, "longest task, ms": page.evaluate("() => longest")}
    print(report)
    assert shown_text(page) == "".join(text for step in steps for text, _ in step)
    # Both halves cost the same if a token costs what it costs; with work that grows with the
    # answer the second half would take three times as much.
    assert spent[2] + spent[3] < 2 * (spent[0] + spent[1]), report
    assert page.locator(".answer .token").count() < 2500


def test_spans_are_only_near_what_is_seen(serve: Serve, open_page: Open) -> None:
    steps = long_steps(2)
    page = ready(open_page(serve(lambda _: Script(steps)).url))
    ask(page)
    ended(page)
    page.evaluate("() => document.querySelector('#scroller').scrollTo(0, 0)")
    page.wait_for_selector(".answer > .flow .block:first-child .token", state="attached")
    page.wait_for_timeout(200)
    assert page.locator(".answer .token").count() < 2500
    assert page.locator(".answer > .flow .block:last-child .token").count() == 0
    assert page.locator("#to-end").is_visible()
    page.click("#to-end")
    page.wait_for_selector(".answer > .flow .block:last-child .token", state="attached")


def test_a_reader_who_scrolled_up_is_left_there(serve: Serve, open_page: Open) -> None:
    steps = long_steps(3)
    page = ready(open_page(serve(lambda _: Script(steps, pause=0.002)).url))
    ask(page)
    page.wait_for_selector(".answer > .flow .block:nth-child(4)")
    page.evaluate("() => document.querySelector('#scroller').scrollTo(0, 100)")
    page.wait_for_selector(".answer > .flow .block:nth-child(8)", state="attached")
    assert page.evaluate("() => document.querySelector('#scroller').scrollTop") == 100
    page.keyboard.press("Escape")
    ended(page, "stopped")


def test_one_line_without_an_end(serve: Serve, open_page: Open) -> None:
    steps = long_steps(4, lines=False)
    page = ready(open_page(serve(lambda _: Script(steps)).url))
    ask(page)
    ended(page)
    text = "".join(text for step in steps for text, _ in step)
    assert shown_text(page) == text
    sizes: Any = page.locator(".answer > .flow .block").evaluate_all(
        "all => all.map((each) => each.textContent.length)"
    )
    assert max(sizes) < 8100
