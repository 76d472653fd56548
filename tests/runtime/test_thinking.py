"""Thinking between two marks: what is reasoning, in any steps, and where prompts begin it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtllm_dflash.runtime.text.answer_text import AnswerText
from trtllm_dflash.runtime.text.thinking import BEGIN, END, ThinkReader, think_marks

BEGIN_ID, END_ID, EOS = 256, 257, 258
SPECIAL = {EOS: "</s>"}
MARKS = think_marks({BEGIN: BEGIN_ID, END: END_ID})


def ids(text: str) -> list[int]:
    """Return a token for each mark, and for each other byte."""
    tokens: list[int] = []
    while text:
        mark = next((m for m in (BEGIN, END, "</s>") if text.startswith(m)), None)
        named = {BEGIN: BEGIN_ID, END: END_ID, "</s>": EOS}
        tokens += [named[mark]] if mark else text[0].encode()
        text = text[len(mark or text[0]) :]
    return tokens


def decode(token_ids: Sequence[int]) -> str:
    return bytes(token for token in token_ids if token < 256).decode(errors="replace")


def read(text: str, *, prompt: str = "Hi", width: int = 3, **options: str) -> tuple[str, str]:
    """Return the text and the reasoning of an answer, pushed in steps of `width` tokens."""
    assert MARKS is not None
    reader = ThinkReader(decode, SPECIAL, MARKS, ids(prompt))
    answer = AnswerText(reader, tuple(options.values()))
    tokens = ids(text)
    for begin in range(0, len(tokens), width):
        if not answer.stopped:
            answer.push(tokens[begin : begin + width])
    answer.finish()
    return answer.text, answer.reasoning


@pytest.mark.parametrize(
    ("written", "text", "reasoning"),
    [
        ("<think>\nSo é.\n</think>\n\nYes.</s>", "Yes.", "So é."),
        ("<think>\n\n</think>\n\nYes.", "Yes.", ""),
        ("Yes.", "Yes.", ""),
        ("<think>a\n\nb", "", "a\n\nb"),
        ("<think>a\n", "", "a\n"),
        ("Well <think>a</think>b<think>c</think> d", "Well bd", "ac"),
        ("a</think>\nb", "ab", ""),
        ("< think>a", "< think>a", ""),
    ],
)
def test_thinking_is_reasoning(written: str, text: str, reasoning: str) -> None:
    for width in (1, 2, 3, 50):
        assert read(written, width=width) == (text, reasoning)


@pytest.mark.parametrize("behind", ["", "\n", "\n\n"])
def test_a_prompt_may_begin_the_thinking(behind: str) -> None:
    written = "So.\n</think>\n\nYes."
    assert read(written, prompt=f"Hi<think>{behind}") == ("Yes.", "So.")


@pytest.mark.parametrize("prompt", ["<think>Hi", "<think>\n\n</think>\n\n", "say <think>ok"])
def test_other_prompts_do_not(prompt: str) -> None:
    assert read("Yes.", prompt=prompt) == ("Yes.", "")


def test_a_stop_word_ends_thinking_too() -> None:
    assert read("<think>one two</think>three", stop=" two") == ("", "one")
    assert read("<think>one</think>\n\nthree\n\nfour", stop="\n\n") == ("three", "one")
    assert read("<think>one</think>three", stop="</think>") == ("", "one")


@given(
    parts=st.lists(st.sampled_from(["a", " ", "\n", "é", BEGIN, END, "</s>"]), max_size=12),
    width=st.integers(2, 5),
)
def test_steps_do_not_matter(parts: list[str], width: int) -> None:
    text = "".join(parts)
    assert read(text, width=width) == read(text, width=1)


def test_marks_need_a_token_each() -> None:
    assert think_marks({BEGIN: 3}) is None
    assert think_marks({}) is None
