"""Log lines, byte counts and the progress bar."""

from __future__ import annotations

import logging

import pytest

from trtllm_dflash import log
from trtllm_dflash.engine_dir.stop_tokens import TurnEnd
from trtllm_dflash.errors import EngineError
from trtllm_dflash.tokenizing.framing import reason


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_960, "1.0 MB"),
        (561_300_000, "561.3 MB"),
        (10**15, "1000.0 TB"),
    ],
)
def test_bytes_for_people(count: int, text: str) -> None:
    assert log.human_bytes(count) == text


def test_a_table_is_aligned() -> None:
    assert log.table([("a", "1"), ("long", "2")]) == "  a     1\n  long  2"
    assert log.table([]) == ""
    rows = [("name", "bytes", ""), ("a", "12", "last")]
    assert log.table(rows, "", align="<>") == "name  bytes\na        12  last"


def test_a_markdown_table_has_titles() -> None:
    assert log.markdown_table(["a", "b"], [("1", "2")]) == "| a | b |\n|---|---|\n| 1 | 2 |"


def test_verbose_shows_debug_lines_and_keeps_one_handler(
    capfd: pytest.CaptureFixture[str],
) -> None:
    logger = logging.getLogger("trtllm_dflash.test")
    try:
        log.configure(verbose=False)
        logger.debug("hidden")
        log.configure(verbose=True)
        logger.debug("shown")
        assert capfd.readouterr().err == "shown\n"
    finally:
        root = logging.getLogger(log.ROOT)
        root.setLevel(logging.NOTSET)
        for handler in root.handlers[1:]:
            root.removeHandler(handler)


def test_a_progress_bar_draws_on_stderr_only_when_enabled(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with log.progress_bar() as progress:  # stderr is captured, so no TTY
        progress("reading", 1, 2)
    assert capfd.readouterr() == ("", "")
    with log.progress_bar(enabled=True) as progress:
        progress("reading", 1, 2)
        progress("writing", 2, 2)
    out, err = capfd.readouterr()
    assert out == ""
    assert "reading" in err


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Grüße, 日本 ▁", "Grüße, 日本 ▁"),
        ("\x1b[2Jgone\r\n", r"\x1b[2Jgone\r\n"),
        ("left\u202eright \udcff", r"left\u202eright \udcff"),
    ],
)
def test_text_from_elsewhere_is_printable(text: str, expected: str) -> None:
    assert log.printable(text) == expected
    assert str(TurnEnd(text, 7, "eos_token")) == f"{expected} (7)"
    assert reason(EngineError(text)).isprintable()
