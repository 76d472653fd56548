"""How texts and conversations are put, and how that is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from trtllm_dflash.options.prompt_options import ChatOptions
from trtllm_dflash.runtime.text.chat_format import ChatFormat, describe_format, is_token_ids
from trtllm_dflash.runtime.text.tokenizer import Tokenizer

USER = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    ("content", "expected"),
    [([1, 2], True), ([], True), ((1,), True), ("hi", False), ("", False), ([USER], False)],
)
def test_token_ids_are_told_from_the_rest(content: object, expected: bool) -> None:
    assert is_token_ids(content) == expected


def test_conversation_gets_the_system_message_once() -> None:
    put = ChatFormat(system="S")
    system = {"role": "system", "content": "S"}
    assert put.conversation("hi") == [system, USER]
    assert put.conversation([USER]) == [system, USER]
    for role in ("system", "developer"):
        own = [{"role": role, "content": "own"}, USER]
        assert put.conversation(own) == own
    assert ChatFormat().conversation("hi") == [USER]


def test_options_make_the_format() -> None:
    options = ChatOptions(system="S", chat_template_kwargs='{"a": [1]}')
    assert ChatFormat.from_options(options) == ChatFormat(True, "S", {"a": [1]})
    assert ChatFormat.from_options(ChatOptions(), raw=True) == ChatFormat(chat=False)


def test_facts_tell_the_options_that_held(make_target: Callable[..., Path]) -> None:
    directory = make_target("llama", tokenizer=True)
    own = {"enable_thinking": False, "style": "short"}
    tokenizer = Tokenizer(directory, chat_template_kwargs=own)
    facts = ChatFormat(template_options={"style": "long"}).facts(tokenizer)
    assert facts["chat_template_kwargs"] == {"enable_thinking": False, "style": "long"}
    assert describe_format(facts) == "chat format with enable_thinking false, style long"


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"chat": False}, "texts as they are"),
        ({"chat": True}, "chat format"),
        ({}, "chat format"),
        ({"chat": True, "chat_template_kwargs": "odd"}, "chat format"),
        ({"chat": True, "system": "S"}, "chat format with a system message"),
    ],
)
def test_format_is_described(facts: dict[str, object], words: str) -> None:
    assert describe_format(facts) == words
