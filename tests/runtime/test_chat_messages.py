"""Conversations and template options, as users and other programs give them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.tokenizing.tokenizer_files import write
from trtllm_dflash.errors import UsageError
from trtllm_dflash.runtime.text.chat_messages import as_messages, check_template_options
from trtllm_dflash.runtime.text.tokenizer import ChatError, Tokenizer

TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    "{% if enable_thinking is defined and not enable_thinking %}(no){% endif %}{{ effort }}"
)
NAMED = [{"name": "a", "template": "x"}, {"name": "b", "template": "y"}]


def test_content_of_text_parts_is_one_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert as_messages([{"role": "user", "content": parts}]) == [
        {"role": "user", "content": "a\nb"}
    ]


def test_content_of_none_is_empty_unless_tools_are_called() -> None:
    calls = [{"function": {"name": "f", "arguments": {"x": 1}}}]
    silent = {"role": "assistant", "content": None}
    assert as_messages([silent]) == [{"role": "assistant", "content": ""}]
    assert as_messages([silent | {"tool_calls": calls}]) == [silent | {"tool_calls": calls}]
    answer = {"role": "tool", "tool_call_id": "1", "name": "f", "content": "2"}
    assert as_messages([answer]) == [answer]


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([], "messages is empty"),
        ({"role": "user", "content": "a"}, "messages is a dict, expected a text or a list"),
        (b"hi", "messages is a bytes, expected a text or a list"),
        (3, "messages is a int, expected a text or a list"),
        (["hi"], r"messages\[0\] is a str, expected an object"),
        ([{"content": "a"}], r"messages\[0\]: its role is None, expected a text"),
        (
            [{"role": "user", "text": "a"}],
            r"""has no "content".* keys are \['role', 'text'\]""",
        ),
        ([{"role": "user", "content": 3}], r"messages\[0\]: its content is a int"),
        ([{"role": "user", "content": [3]}], r"messages\[0\], part 0 is a int"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}],
            r"messages\[0\], part 0 is of type 'image_url', and this model reads only text",
        ),
        ([{"role": "user", "content": [{"type": "text"}]}], 'part 0: its "text" is None'),
        (
            [{"role": "user", "content": "a", "when": {1, 2}}],
            "messages holds what JSON does not",
        ),
        (
            [{"role": "user", "content": "a", "x": float("nan")}],
            "messages holds what JSON does",
        ),
    ],
)
def test_messages_that_are_none(messages: Any, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        as_messages(messages)


def test_options_that_are_no_templates() -> None:
    with pytest.raises(
        UsageError, match="chat_template_kwargs has tokenize, which is no option"
    ):
        check_template_options({"tokenize": True})
    with pytest.raises(UsageError, match="chat_template_kwargs holds what JSON does not have"):
        check_template_options({"x": object()})


def test_template_options_reach_the_template(tmp_path: Path) -> None:
    """Explicit ones replace the engine's, key by key."""
    write(tmp_path, template=TEMPLATE)
    tokenizer = Tokenizer(
        tmp_path, chat_template_kwargs={"enable_thinking": False, "effort": "low"}
    )

    def rendered(**options: Any) -> str:
        return tokenizer.decode(tokenizer.encode_chat("hi", **options))

    assert rendered() == "[user]hi(no)low"
    assert rendered(enable_thinking=True) == "[user]hilow"
    assert rendered(effort="high") == "[user]hi(no)high"


def test_an_option_that_the_template_lacks(tmp_path: Path) -> None:
    tokenizer = Tokenizer(write(tmp_path, template=TEMPLATE))
    with pytest.raises(
        ChatError, match="has no option 'enable_thinkin'; its options: effort, enable_thinking"
    ):
        tokenizer.encode_chat("hi", enable_thinkin=False)


def test_named_templates_are_chosen_by_name(tmp_path: Path) -> None:
    tokenizer = Tokenizer(write(tmp_path, template=NAMED))
    assert not tokenizer.has_chat_template
    with pytest.raises(ChatError, match="has the chat templates a, b, and none is the default"):
        tokenizer.encode_chat("hi")
    assert tokenizer.decode(tokenizer.encode_chat("hi", chat_template="b")) == "y"
    with pytest.raises(ChatError, match=r"can be chosen by name only, and .* is not among the"):
        tokenizer.encode_chat("hi", chat_template="{{ 1 }}")


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{{ 1 / 0 }}", "fails with these messages: ZeroDivisionError: division by zero"),
        ("{{ none + 'a' }}", "fails with these messages: TypeError"),
        ("{% include 'x' %}", "fails with these messages: TypeError: no loader"),
        ("{{ messages[7].content.x }}", "refuses these messages: list object has no element 7"),
        ("{% for %}", "is not valid"),
        ("{{ ''.__class__.__mro__ }}", "refuses these messages: access to attribute"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "fails with .*: RecursionError"),
    ],
)
def test_templates_fail_in_words(tmp_path: Path, template: str, problem: str) -> None:
    tokenizer = Tokenizer(write(tmp_path, template=template))
    with pytest.raises(ChatError, match=f"the model's chat template {problem}"):
        tokenizer.encode_chat("hi")
