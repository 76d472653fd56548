"""The text of an answer: whole characters, nothing of a stop word, nothing lost."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trtllm_dflash.runtime.text.answer_text import AnswerText
from trtllm_dflash.runtime.text.pieces import Delta, PlainReader

END = 256  # a special token
SPECIAL = {END: "<end>"}


def as_text(token_ids: Sequence[int]) -> str:
    """Return the text of tokens that are bytes; special tokens show nothing."""
    return bytes(token for token in token_ids if token < END).decode(errors="replace")


def answer_text(stop_words: Sequence[str] = (), *, min_tokens: int = 0) -> AnswerText:
    return AnswerText(PlainReader(as_text, SPECIAL), stop_words, min_tokens=min_tokens)


def pushed(
    answer: AnswerText, token_ids: Sequence[int], widths: Sequence[int]
) -> tuple[list[str], list[int]]:
    """Push tokens in blocks; return the pieces of text with the rest at the end, and the tokens."""
    pieces: list[str] = []
    tokens: list[int] = []
    begin = 0
    for width in [*widths, *[1] * len(token_ids)]:
        block = token_ids[begin : begin + width]
        begin += width
        if not block or answer.stopped:
            break
        used, delta = answer.push(block)
        pieces.append(delta.text)
        tokens += used
    return [*pieces, answer.finish().text], tokens


def before_first(text: str, stop_words: Sequence[str]) -> str:
    return text[
        : min(
            [place for word in stop_words if (place := text.find(word)) >= 0], default=len(text)
        )
    ]


@settings(max_examples=40)
@given(
    text=st.text("abcé", max_size=30),
    widths=st.lists(st.integers(1, 5), max_size=12),
    stop_words=st.lists(st.text("abcé", min_size=1, max_size=4), max_size=3),
)
@example(text="aab", widths=[1], stop_words=["ab"])
def test_text_ends_before_the_first_stop_word(
    text: str, widths: list[int], stop_words: list[str]
) -> None:
    answer = answer_text(stop_words)
    pieces, tokens = pushed(answer, list(text.encode()), widths)
    stopped = any(word in text for word in stop_words)
    assert answer.stopped == stopped
    assert all("\ufffd" not in piece for piece in pieces)
    shown = as_text(tokens)
    first_complete = next(
        (end for end in range(len(text) + 1) if any(w in text[:end] for w in stop_words)),
        len(text),
    )
    assert shown == text[:first_complete]
    assert "".join(pieces) == before_first(shown, stop_words) == answer.text


@settings(max_examples=40)
@given(
    tokens=st.lists(st.sampled_from([*b"ab<", END]), max_size=14),
    widths=st.lists(st.integers(1, 5), max_size=9),
    stop_words=st.lists(st.sampled_from(["<end>a", "b<end>", "d><e", "a<"]), max_size=3),
    min_tokens=st.integers(0, 8),
)
def test_stop_words_hold_special_tokens_and_text(
    tokens: list[int], widths: list[int], stop_words: list[str], min_tokens: int
) -> None:
    answer = answer_text(stop_words, min_tokens=min_tokens)
    pieces, used = pushed(answer, tokens, widths)
    shown = [SPECIAL.get(token, chr(token)) for token in tokens]
    ends = [len("".join(shown[:count])) for count in range(len(tokens) + 1)]
    stop = None
    for count in range(min_tokens + 1, len(tokens) + 1):
        whole = "".join(shown[:count])
        places = [
            whole.find(word, max(0, ends[count - 1] - len(word) + 1)) for word in stop_words
        ]
        found = [place for place in places if place >= 0]
        if found:
            stop = count, min(found)
            break
    assert answer.stopped == (stop is not None)
    count, place = stop or (len(tokens), ends[-1])
    assert used == tokens[:count]
    visible = ""
    for token, begin in zip(tokens, ends, strict=False):
        if token != END and begin < place:
            visible += chr(token)
    assert "".join(pieces) == answer.text == visible


def test_beginning_of_a_stop_word_is_held_back() -> None:
    answer = answer_text(["stop", "stall"])
    shown = [answer.push([byte])[1].text for byte in b"a stab"]
    assert shown == ["a", " ", "", "", "", "stab"]
    assert answer.push(list(b" sto")) == (list(b" sto"), Delta(" "))
    assert answer.finish() == Delta("sto")


def test_tokens_after_the_stop_word_are_dropped() -> None:
    answer = answer_text(["."])
    assert answer.push(list(b"one. two")) == (list(b"one."), Delta("one"))
    assert answer.stopped
    assert answer.finish() == Delta()


def test_half_a_character_at_the_end_is_shown() -> None:
    answer = answer_text(["x"])
    assert answer.push(list("aé".encode()[:2])) == ([97, 195], Delta("a"))
    assert answer.finish() == Delta("\ufffd")


def test_a_stop_word_that_ends_early_does_not_count() -> None:
    """A shorter stop word inside the beginning of a longer one was passed before `min_tokens`."""
    answer = answer_text(["abc", "b"], min_tokens=2)
    assert answer.push(list(b"ab")) == ([97, 98], Delta())
    assert answer.push(list(b"d")) == ([100], Delta("abd"))
    assert answer.push(list(b"xb")) == ([120, 98], Delta("x"))
    assert answer.stopped


@pytest.mark.parametrize(("stop_words", "expected"), [((), 10), (("~~",), 10), (("9",), 18)])
def test_a_step_is_decoded_once(stop_words: tuple[str, ...], expected: int) -> None:
    """Only the step in which a stop word ends is decoded token by token."""
    calls = 0

    def decode(token_ids: Sequence[int]) -> str:
        nonlocal calls
        calls += 1
        return as_text(token_ids)

    answer = AnswerText(PlainReader(decode, SPECIAL), stop_words)
    for step in range(10):
        if not answer.stopped:
            answer.push(list(b"abcdefg%d" % step))
    assert calls <= expected + 3, "and now and then once more, to cut the window"
