"""The text of an answer: whole characters, nothing of a stop word, nothing lost."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import example, given
from hypothesis import strategies as st

from trtllm_dflash.runtime.text.stop_words import StopWordFilter


def as_text(token_ids: Sequence[int]) -> str:
    """Return the text of tokens that are bytes."""
    return bytes(token_ids).decode(errors="replace")


def pushed(
    data: bytes, widths: Sequence[int], stop_words: Sequence[str]
) -> tuple[list[str], list[int], StopWordFilter]:
    """Push `data` in blocks; return the pieces of text with the rest at the end, and the tokens."""
    answer, pieces, tokens, begin = StopWordFilter(as_text, stop_words), [], [], 0
    for width in [*widths, *[1] * len(data)]:
        block = list(data[begin : begin + width])
        begin += width
        if not block or answer.stopped:
            break
        used, text = answer.push(block)
        pieces.append(text)
        tokens += used
    return [*pieces, answer.finish()], tokens, answer


def before_first(text: str, stop_words: Sequence[str]) -> str:
    return text[
        : min(
            [place for word in stop_words if (place := text.find(word)) >= 0], default=len(text)
        )
    ]


@given(
    text=st.text("abcé", max_size=30),
    widths=st.lists(st.integers(1, 5), max_size=12),
    stop_words=st.lists(st.text("abcé", min_size=1, max_size=4), max_size=3),
)
@example(text="aab", widths=[1], stop_words=["ab"])
def test_text_ends_before_the_first_stop_word(
    text: str, widths: list[int], stop_words: list[str]
) -> None:
    pieces, tokens, answer = pushed(text.encode(), widths, stop_words)
    stopped = any(word in text for word in stop_words)
    assert answer.stopped == stopped
    assert all("\ufffd" not in piece for piece in pieces)
    shown = as_text(tokens)
    first_complete = next(
        (end for end in range(len(text) + 1) if any(w in text[:end] for w in stop_words)),
        len(text),
    )
    assert shown == text[:first_complete]
    assert "".join(pieces) == before_first(shown, stop_words)


def test_beginning_of_a_stop_word_is_held_back() -> None:
    answer = StopWordFilter(as_text, ["stop", "stall"])
    assert [answer.push([byte])[1] for byte in b"a stab"] == ["a", " ", "", "", "", "stab"]
    assert answer.push(list(b" sto")) == (list(b" sto"), " ")
    assert answer.finish() == "sto"


def test_tokens_after_the_stop_word_are_dropped() -> None:
    answer = StopWordFilter(as_text, ["."])
    assert answer.push(list(b"one. two")) == (list(b"one."), "one")
    assert answer.stopped
    assert answer.finish() == ""


def test_half_a_character_at_the_end_is_shown() -> None:
    answer = StopWordFilter(as_text, ["x"])
    assert answer.push(list("aé".encode()[:2])) == ([97, 195], "a")
    assert answer.finish() == "\ufffd"
