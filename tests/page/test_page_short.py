"""One conversation of the page with the real server, on a fake engine: short, for `make test`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from tests.http_server.running import Running, engine_of_bytes
from tests.page.conftest import ask, drawn_tokens, ended, ready, shown_text, streamed
from tests.runtime import tiny_tokenizer
from tests.runtime.callers import Gate

PROMPT = "Name a fruit."


def shown(page: Page, texts: list[str]) -> list[str]:
    """Return what the page makes of each text; the fake engine writes control characters."""
    found: list[str] = page.evaluate(
        """async (texts) => {
          const { visible } = await import("/page/plain_text.js");
          return texts.map(visible);
        }""",
        texts,
    )
    return found


def test_a_short_conversation(open_page: Callable[..., Page], tmp_path: Path) -> None:
    engine = engine_of_bytes(tiny_tokenizer.write_byte_level(tmp_path))
    with Running({"tiny": engine}) as server:
        tokens, last = streamed(server, PROMPT, max_tokens=60)
        page = ready(open_page(server.url))
        page.fill("[name=max_tokens]", "60")
        ask(page, PROMPT)
        ended(page)
        texts = shown(page, [token["text"] for token in tokens])
        letters = [token["source"][0] for token in tokens]
        wanted = [pair for pair in zip(texts, letters, strict=True) if pair[0]]
        assert [pair for pair in drawn_tokens(page) if pair[0]] == wanted
        assert {letter for _, letter in wanted} >= {"t", "d"}
        assert shown_text(page) == "".join(texts)
        page.wait_for_selector("#measured[data-state=done]")
        figure = float(page.text_content("#figure-acceptance") or "nan")
        assert figure == pytest.approx(last["dflash"]["acceptance_length"], abs=0.005)
        gate = Gate(engine)
        page.click("#new-chat")
        ask(page, "Go on.")
        gate.reached.wait()
        page.keyboard.press("Escape")
        ended(page, "stopped")
        gate.let()
