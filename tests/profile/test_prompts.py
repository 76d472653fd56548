"""The prompts that come with the package, and prompts of one length."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from trtllm_dflash.errors import UsageError
from trtllm_dflash.profile.prompts import (
    EncodedPrompt,
    Prompt,
    builtin_prompts,
    encode,
    fit_length,
    limit_per_category,
)
from trtllm_dflash.runtime.text.prompt_files import read_prompts

# Of SPEED-Bench's categories and MT-Bench's, by their names there.
CATEGORIES = {
    "coding",
    "math",
    "reasoning",
    "stem",
    "humanities",
    "writing",
    "roleplay",
    "extraction",
    "summarization",
    "rag",
    "qa",
    "multilingual",
}
from trtllm_dflash.runtime.text.chat_format import ChatFormat


def test_builtin_prompts_have_equal_categories() -> None:
    prompts = builtin_prompts()
    assert Counter(prompt.category for prompt in prompts) == dict.fromkeys(CATEGORIES, 4)
    texts = [prompt.content for prompt in prompts]
    assert len(set(map(str, texts))) == len(texts) == 48
    assert all(isinstance(text, str) and 20 < len(text) < 1000 for text in texts)
    assert prompts[47].where.endswith("line 48")
    # So that a part of them has all categories.
    assert {prompt.category for prompt in prompts[:12]} == CATEGORIES


def test_read_prompts_takes_category_or_its_old_name(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    rows = [
        {"prompt": "a", "category": "math"},
        {"prompt": "b", "kind": "code"},
        {"prompt": "c"},
    ]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert [line.category for line in read_prompts(path)] == ["math", "code", ""]


def test_limit_per_category_keeps_the_first() -> None:
    taken = limit_per_category(builtin_prompts(), 2)
    assert taken == builtin_prompts()[:24]
    assert limit_per_category(taken, None) == taken


def test_fit_length_cuts_or_fills_the_beginning() -> None:
    prompts = [
        EncodedPrompt("a", [1, 2, 3]),
        EncodedPrompt("b", [4]),
        EncodedPrompt("a", [5, 6, 7, 8, 9]),
    ]
    fitted = fit_length(prompts, 4)
    assert [prompt.input_ids for prompt in fitted] == [[9, 1, 2, 3], [1, 2, 3, 4], [6, 7, 8, 9]]
    assert [prompt.category for prompt in fitted] == ["a", "b", "a"]
    assert [prompt.input_ids for prompt in fit_length([EncodedPrompt("a", [1, 2])], 5)] == [
        [2, 1, 2, 1, 2]
    ]
    assert fit_length(prompts, None) == prompts
    assert fit_length([EncodedPrompt("a", [])], 3) == [EncodedPrompt("a", [])]


def test_encode_refuses_text_without_a_tokenizer() -> None:
    assert encode([Prompt([1, 2], "a")], None, ChatFormat()) == [EncodedPrompt("a", [1, 2])]
    with pytest.raises(
        UsageError, match=r"no tokenizer.json, .* Give --prompts with token ids"
    ):
        encode([Prompt("text")], None, ChatFormat())
