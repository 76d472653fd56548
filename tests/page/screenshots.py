"""Take the pictures of the page that docs/ shows: three widths, light and dark.

    python -m tests.page.screenshots docs/images

The demo pair answers, so figures are those of this machine. It needs the demo engines, Chromium,
Playwright and Pillow; with Inter and JetBrains Mono installed the pictures look as those that are
kept.
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from PIL import Image
from playwright.sync_api import sync_playwright

if TYPE_CHECKING:
    from playwright.sync_api import Page

from tests.http_server.running import Running
from tests.page.conftest import ask, chromium, ended, ready
from tests.patience import PATIENCE
from trtllm_dflash.runtime.engine import Engine

SIZES = {360: 740, 820: 1000, 1440: 900}
THEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
MAX_BYTES = 150_000
CHAT = "Write a Python function that tells whether a year is a leap year."
PAIR = "Name three fruits, and say how each one tastes."


def main() -> None:
    """Write page-WIDTH-THEME.png and page-pair-WIDTH-THEME.png."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--engine", type=Path, default=Path("demo/cpu"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    engine = Engine.load(options.engine, prefix_cache_mib=64)
    with Running({"demo": engine}) as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.set_default_timeout(1000 * PATIENCE)
        page.goto(server.url)
        ready(page)
        ask(page, CHAT)
        ended(page)
        take(page, options.output, "page")
        page.set_viewport_size({"width": 1440, "height": 900})
        page.click("#new-chat")
        page.check("#mode-pair")
        ask(page, PAIR)
        ended(page, nth=1)
        take(page, options.output, "page-pair")
        browser.close()


def take(page: Page, output: Path, name: str) -> None:
    """Take the pictures of one conversation."""
    for width, height in SIZES.items():
        page.set_viewport_size({"width": width, "height": height})
        for theme in THEMES:
            page.emulate_media(color_scheme=theme)
            path = save(page, output / f"{name}-{width}-{theme}.png")
            print(f"{path}: {path.stat().st_size:,} bytes")


def save(page: Page, path: Path) -> Path:
    """Write what the page shows, in few colours: it has few."""
    page.wait_for_timeout(400)  # for what moves into place
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    picture.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    if path.stat().st_size > MAX_BYTES:
        sys.exit(
            f"{path} has {path.stat().st_size:,} bytes, and at most {MAX_BYTES:,} are kept."
        )
    return path


if __name__ == "__main__":
    main()
