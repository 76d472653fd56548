"""The sequences of tokens that stand for bad words."""

from __future__ import annotations

import pytest

from trtllm_dflash.errors import UsageError
from trtllm_dflash.options.sampling import SamplingParams
from trtllm_dflash.runtime.bad_words import bad_word_tokens


class Letters:
    """A tokenizer of letters; a space and the letter behind it are one token of some letters."""

    def __init__(self, with_space: str) -> None:
        self.with_space = with_space

    def encode(self, text: str, *, special_tokens: bool) -> list[int]:
        assert not special_tokens
        for letter in self.with_space:
            text = text.replace(f" {letter}", letter.upper())
        return [ord(letter) for letter in text]


def tokens(words: list[str], with_space: str = "ab") -> list[str]:
    found = bad_word_tokens(SamplingParams(bad_words=words), Letters(with_space))  # type: ignore
    return ["".join(map(chr, word)) for word in found]


def test_a_word_counts_with_and_without_a_space() -> None:
    assert tokens(["ab"]) == ["ab", "Ab"]
    assert tokens([" ab"]) == ["Ab"]


def test_white_space_counts_as_it_stands() -> None:
    assert tokens(["\n\n", " "]) == ["\n\n", " "]


def test_what_ends_with_another_is_left_out() -> None:
    """Its last token is forbidden by the shorter one."""
    assert tokens(["cb"]) == ["cb"]
    assert tokens(["ab", "ab", " ab"]) == ["ab", "Ab"]


def test_long_words_are_refused() -> None:
    with pytest.raises(UsageError, match=r"bad_words holds .* which has 33 tokens, .* most 32"):
        tokens(["x" * 33])
