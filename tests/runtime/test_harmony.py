"""gpt-oss answers: what is text, what is reasoning, in any order of marks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runtime import tiny_tokenizer as tiny
from tests.runtime.fake_session import FakeSession, fake_config
from trtllm_dflash.options.sampling import SamplingParams
from trtllm_dflash.runtime.engine import Engine
from trtllm_dflash.runtime.text.answer_text import AnswerText, AnswerTexts
from trtllm_dflash.runtime.text.harmony import MAX_HEADER_TOKENS, HarmonyReader, harmony_marks
from trtllm_dflash.runtime.text.tokenizer import Tokenizer

MARKS = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>")
SPECIAL = {256 + place: text for place, text in enumerate((*MARKS, "<|constrain|>"))}
ID_OF = {text: token for token, text in SPECIAL.items()}
GENERATION_PROMPT = "<|start|>user<|message|>Hi<|end|><|start|>assistant"


def ids(text: str) -> list[int]:
    """Return the tokens of a text: one for each mark and for each other byte."""
    tokens: list[int] = []
    while text:
        mark = next((mark for mark in ID_OF if text.startswith(mark)), None)
        tokens += [ID_OF[mark]] if mark else text[0].encode()
        text = text[len(mark or text[0]) :]
    return tokens


def decode(token_ids: Sequence[int]) -> str:
    return bytes(token for token in token_ids if token < 256).decode(errors="replace")


def answer_text(prompt: str, stop_words: Sequence[str] = ()) -> AnswerText:
    marks = harmony_marks(ID_OF)
    assert marks is not None
    return AnswerText(HarmonyReader(decode, SPECIAL, marks, ids(prompt)), stop_words)


def read(
    text: str,
    *,
    prompt: str = GENERATION_PROMPT,
    stop_words: Sequence[str] = (),
    width: int = 3,
) -> tuple[str, str]:
    """Return the text and the reasoning of an answer, pushed in steps of `width` tokens."""
    answer = answer_text(prompt, stop_words)
    tokens = ids(text)
    shown = ["", ""]
    for begin in range(0, len(tokens), width):
        if not answer.stopped:
            _, delta = answer.push(tokens[begin : begin + width])
            shown = [shown[0] + delta.text, shown[1] + delta.reasoning]
    last = answer.finish()
    assert answer.text == shown[0] + last.text
    assert answer.reasoning == shown[1] + last.reasoning
    return answer.text, answer.reasoning


WHOLE = (
    "<|channel|>analysis<|message|>User wants a colour.<|end|>"
    "<|start|>assistant<|channel|>final<|message|>Blue<|return|>"
)
CALL = "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>"


@pytest.mark.parametrize(
    ("answer", "text", "reasoning"),
    [
        (WHOLE, "Blue", "User wants a colour."),
        (WHOLE[:-13], "B", "User wants a colour."),
        ("<|channel|>analysis<|message|>Hm<|end|><|start|>assistant" + CALL, "", "Hm\n{}"),
        ("<|channel|>final<|message|>é日", "é日", ""),
        ("<|message|>Blue<|return|>", "Blue", ""),
        ("<|channel|>analysis<|message|>never ends", "", "never ends"),
        ("<|channel|>anal", "", ""),
        ("<|channel|>analysis", "", ""),
        (" Blue, without any form", " Blue, without any form", ""),
        ("<|channel|>final<|message|>One<|end|>Two", "One\nTwo", ""),
        ("<|channel|>final<|message|>a<|message|>b", "ab", ""),
        ("<|channel|>final<|message|>a<|channel|>final<|message|>b", "a\nb", ""),
        ("<|channel|>x<|channel|>final<|message|>b", "b", ""),
        ("<|channel|><|message|>no name", "", "no name"),
        ("<|channel|>final<|message|>a<|end|><|start|>user<|message|>b", "a", "b"),
        ("<|end|><|end|><|return|>", "", ""),
        ("<|start|><|start|><|channel|>", "", ""),
    ],
)
def test_what_is_text_and_what_is_reasoning(answer: str, text: str, reasoning: str) -> None:
    for width in (1, 3, 100):
        assert read(answer, width=width) == (text, reasoning)


@pytest.mark.parametrize(
    ("prompt", "text", "reasoning"),
    [
        ("", "a b", ""),
        ("Once upon a time", "a b", ""),
        ("<|start|>assistant<|channel|>final<|message|>Once", "a b", ""),
        ("<|start|>assistant<|channel|>analysis<|message|>Once", "", "a b"),
        ("<|start|>assistant<|message|>", "a b", ""),
        ("<|start|>user<|message|>", "", "a b"),
        ("<|message|>", "a b", ""),
        ("<|start|>assistant<|channel|>final<|message|>Once<|end|>", "a b", ""),
        ("<|start|>assistant<|channel|>", "", ""),
    ],
)
def test_an_answer_begins_where_its_prompt_ends(prompt: str, text: str, reasoning: str) -> None:
    assert read("a b", prompt=prompt) == (text, reasoning)


@pytest.mark.parametrize("begin", ["", "<|channel|>", "<|start|>"])
def test_a_header_without_end_becomes_a_body(begin: str) -> None:
    long = "x" * (3 * MAX_HEADER_TOKENS)
    for width in (1, 7, 500):
        answer = answer_text(GENERATION_PROMPT)
        tokens = ids(begin + long)
        for place in range(0, len(tokens), width):
            answer.push(tokens[place : place + width])
        shown = answer.text + answer.reasoning
        assert shown in (long, "assistant" + long), "shown as it comes, nothing is lost"


@pytest.mark.parametrize(
    ("stop_words", "text", "reasoning"),
    [
        (["<|return|>"], "Blue", "User wants a colour."),
        (["wants"], "", "User "),
        (["anal"], "", ""),
        (["<|end|><|start|>assistant"], "", "User wants a colour."),
        (["final<|message|>Bl"], "", "User wants a colour."),
        (["ue<|return|>"], "Bl", "User wants a colour."),
        (["<|channel|>analysis"], "", ""),
    ],
)
def test_stop_words_see_marks_and_headers(
    stop_words: list[str], text: str, reasoning: str
) -> None:
    for width in (1, 4, 100):
        assert read(WHOLE, stop_words=stop_words, width=width) == (text, reasoning)


TOKENS = st.lists(st.sampled_from([*SPECIAL, *b"ab ", *b"final"[:2], 0xE6, 0x97]), max_size=60)


@settings(max_examples=40)
@given(tokens=TOKENS, prompt=TOKENS, widths=st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_steps_do_not_change_any_answer(
    tokens: list[int], prompt: list[int], widths: list[int]
) -> None:
    marks = harmony_marks(ID_OF)
    assert marks is not None
    shown = []
    for sizes in (widths, [1], [1000]):
        answer = AnswerText(HarmonyReader(decode, SPECIAL, marks, prompt), ["a b", "<|end|>a"])
        begin = 0
        turn = 0
        while begin < len(tokens) and not answer.stopped:
            width = sizes[turn % len(sizes)]
            answer.push(tokens[begin : begin + width])
            begin += width
            turn += 1
        answer.finish()
        shown.append((answer.text, answer.reasoning, answer.stopped))
    assert shown[0] == shown[1] == shown[2]
    assert len(shown[0][0]) + len(shown[0][1]) <= 2 * len(tokens) + 20


def test_the_architecture_chooses_the_reader(tmp_path: Path) -> None:
    """Not the text: the same marks in another model's answer are special tokens like others."""
    tokenizer = Tokenizer(tiny.write_byte_level(tmp_path, special=(*tiny.SPECIAL, *MARKS)))
    id_of = tokenizer.special_tokens
    answer = [id_of["<|channel|>"], *b"final", id_of["<|message|>"], *b"Blue"]
    expected: dict[tuple[str, bool], str] = {
        ("gpt_oss", True): "Blue",
        ("qwen3", True): "finalBlue",
        ("gpt_oss", False): "<|channel|>final<|message|>Blue",
    }
    for (model_type, skip), text in expected.items():
        made = AnswerTexts(tokenizer, model_type).make(
            [], SamplingParams(skip_special_tokens=skip)
        )
        made.push(answer)
        made.finish()
        assert (made.text, made.reasoning) == (text, "")


def test_a_stream_tells_reasoning_from_text(tmp_path: Path) -> None:
    special = (*tiny.SPECIAL, *MARKS)
    tokenizer = Tokenizer(tiny.write_byte_level(tmp_path, special=special))
    config = fake_config(vocab_size=256 + len(special), model_type="gpt_oss", max_seq_len=300)
    engine = Engine(config, FakeSession(config), tokenizer)
    id_of = tokenizer.special_tokens
    prompt = [id_of["<|start|>"], *b"assistant", id_of["<|channel|>"], *b"analysis"]
    options: dict[str, Any] = {"max_tokens": 200, "stop_token_ids": ()}
    stream = engine.stream([[*prompt, id_of["<|message|>"]]], **options)
    chunks = list(stream)
    (answer,) = stream.generations()
    assert answer.reasoning
    assert answer.text == "".join(chunk.text for chunk in chunks)
    assert answer.reasoning == "".join(chunk.reasoning for chunk in chunks)
