"""Biases and bad words as requests give them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from trtllm_dflash.errors import UsageError
from trtllm_dflash.options.sampling import SamplingParams


@pytest.mark.parametrize(
    "given",
    [
        {5: -100, 7: 2.5},
        {"5": -100, "7": 2.5},
        '{"5": -100, "7": 2.5}',
        {np.int64(5): -100.0, 7: np.float64(2.5)},
    ],
    ids=["integers", "texts", "JSON", "NumPy"],
)
def test_biases_have_one_form(given: Any) -> None:
    params = SamplingParams(logit_bias=given)
    assert params.biases == ((5, -100.0), (7, 2.5))
    assert SamplingParams(logit_bias=params.logit_bias) == params


@pytest.mark.parametrize("given", [None, {}, "{}"])
def test_no_bias_is_none(given: Any) -> None:
    assert SamplingParams(logit_bias=given).logit_bias is None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({5: 101}, "logit_bias of token 5 is 101, expected a number from -100 to 100"),
        ({5: float("nan")}, "logit_bias of token 5 is nan"),
        ({5: "1"}, "logit_bias of token 5 is '1', expected a number"),
        ({-1: 1}, "a token of logit_bias is -1, expected an integer of at least 0"),
        ({"a": 1}, "a token of logit_bias is 'a', expected an integer"),
        ({True: 1}, "a token of logit_bias is True"),
        ({5: 1, "5": 2}, "logit_bias has token 5 twice"),
        ('{"5": 1, "5": 2}', "logit_bias has the token '5' twice"),
        ([5], r"logit_bias is \[5\], expected a mapping"),
        ("[5]", r"logit_bias is \[5\], expected a mapping"),
        ("{", "logit_bias is not JSON"),
        ("[" * 60_000, "logit_bias is not JSON"),
        (" " * 100_000, "logit_bias has 100000 characters"),
        (dict.fromkeys(range(1025), 1), r"logit_bias has 1025 tokens, .* at most 1024"),
    ],
)
def test_wrong_biases_are_refused(given: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        SamplingParams(logit_bias=given)


def test_one_text_is_one_bad_word() -> None:
    assert SamplingParams(bad_words="no").bad_words == ("no",)
    assert SamplingParams(bad_words=["a", "b"]).bad_words == ("a", "b")
    assert SamplingParams(bad_words=None).bad_words == ()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([""], "bad_words holds '', expected texts that are not empty"),
        ([5], "bad_words holds 5"),
        (["x" * 257], r"a text of 257 characters .* at most 256"),
        (["x"] * 65, "bad_words holds more than 64 entries"),
        (5, "bad_words is 5, expected a text or a list of texts"),
    ],
)
def test_wrong_bad_words_are_refused(given: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        SamplingParams(bad_words=given)
