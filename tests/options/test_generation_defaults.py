"""A checkpoint's own sampling: what is taken of it, and where a request says something itself."""

from __future__ import annotations

from typing import Any

import pytest

from trtllm_dflash.errors import UsageError
from trtllm_dflash.options.generation_defaults import (
    check_defaults,
    completed,
    defaults_in,
    defaults_text,
)

QWEN3: dict[str, Any] = {"temperature": 0.6, "top_p": 0.95, "top_k": 20}


def test_what_checkpoints_publish() -> None:
    published = QWEN3 | {"do_sample": True, "eos_token_id": [1, 2], "transformers_version": "5"}
    assert defaults_in(published) == QWEN3
    penalty = defaults_in({"repetition_penalty": 1.05, "temperature": 0.7})
    assert defaults_text(penalty) == "temperature 0.7, repetition_penalty 1.05"


def test_what_changes_nothing_is_left_out() -> None:
    neutral = {"top_p": 1.0, "top_k": 0, "min_p": 0, "repetition_penalty": 1}
    assert defaults_in(neutral) == {}
    # OpenAI's default is another one: what the checkpoint says counts.
    assert defaults_in({"temperature": 1.0}) == {"temperature": 1.0}


@pytest.mark.parametrize("value", ["0.5", -1, True, None, [0.5], float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["temperature", "top_p", "min_p", "repetition_penalty"])
def test_what_is_no_value_is_left_out(name: str, value: Any) -> None:
    assert defaults_in({name: value, "top_k": 5}) == {"top_k": 5}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "generation_defaults is .*, expected an object"),
        ({"top_h": 1}, "generation_defaults has 'top_h', expected temperature, top_p"),
        ({"top_p": 2}, "top_p is 2, expected a number above 0 and at most 1"),
    ],
)
def test_damaged_defaults_are_refused(given: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        check_defaults(given)


def test_a_request_comes_before_the_defaults() -> None:
    assert completed(QWEN3, {}) == QWEN3
    assert completed(QWEN3, {"top_p": 0.5, "n": 2}) == QWEN3 | {"top_p": 0.5, "n": 2}


def test_a_greedy_request_takes_no_default_of_sampling() -> None:
    own = QWEN3 | {"min_p": 0.1, "repetition_penalty": 1.1}
    greedy = {"temperature": 0, "repetition_penalty": 1.1}
    assert completed(own, {"temperature": 0}) == greedy
    assert completed(own, {"temperature": 0, "top_p": 0.5}) == greedy | {"top_p": 0.5}
