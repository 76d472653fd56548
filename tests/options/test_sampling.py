"""The sampling options: ranges, names, and the two spellings of them."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from trtllm_dflash.errors import UsageError
from trtllm_dflash.options.draft_len_schedule import DraftLenSchedule
from trtllm_dflash.options.sampling import SamplingOptions, SamplingParams


def test_keywords_are_the_fields() -> None:
    names = {field.name for field in fields(SamplingParams)}
    assert set(SamplingOptions.__annotations__) == names | {"max_new_tokens"}


def test_max_new_tokens_is_an_alias() -> None:
    assert SamplingParams(max_new_tokens=3) == SamplingParams(max_tokens=3)
    assert SamplingParams.from_options({"max_new_tokens": 3}).max_tokens == 3
    with pytest.raises(UsageError, match="give either max_tokens or max_new_tokens, not both"):
        SamplingParams.from_options({"max_new_tokens": 3, "max_tokens": 3})
    with pytest.raises(UsageError, match="max_tokens is 0, expected an integer of at least 1"):
        SamplingParams(max_new_tokens=0)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("max_tokens", 0, "max_tokens is 0, expected an integer of at least 1"),
        ("max_tokens", 2.0, "max_tokens is 2.0, expected an integer"),
        ("max_tokens", True, "max_tokens is True, expected an integer"),
        (
            "temperature",
            -0.1,
            r"temperature is -0.1, expected 0 \(greedy\) or a finite positive number",
        ),
        ("temperature", math.inf, "temperature is inf, expected"),
        ("temperature", math.nan, "temperature is nan, expected"),
        ("temperature", "hot", "temperature is 'hot', expected"),
        ("top_p", 0.0, "top_p is 0.0, expected a number above 0 and at most 1"),
        ("top_p", 1.01, "top_p is 1.01, expected a number above 0 and at most 1"),
        ("top_k", -1, "top_k is -1, expected an integer of at least 0"),
        ("min_p", -0.1, "min_p is -0.1, expected a number from 0 to 1"),
        ("min_p", 1.5, "min_p is 1.5, expected a number from 0 to 1"),
        ("seed", -1, "seed is -1, expected an integer of at least 0"),
        ("seed", [1, -2], "seed is -2, expected an integer of at least 0"),
        ("seed", None, "seed is None, expected an integer of at least 0"),
        ("draft", 1, "draft is 1, expected True or False"),
        ("draft_len", -1, "draft_len is -1, expected an integer of at least 0"),
        (
            "draft_len_schedule",
            {1: -2},
            "draft_len in draft_len_schedule is -2, expected an integer",
        ),
        ("draft_len_schedule", [(1, 2)], "draft_len_schedule is .*, expected a mapping"),
        ("stop_token_ids", [3, -1], "stop_token_ids is -1, expected an integer of at least 0"),
        ("stop_token_ids", 3, "stop_token_ids is 3, expected a list of token ids or None"),
        ("stop_token_ids", "2", "stop_token_ids is '2', expected a list of token ids or None"),
    ],
)
def test_params_refuse_values_out_of_range(name: str, value: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        SamplingParams.from_options({name: value})


def test_lists_and_arrays_become_tuples() -> None:
    params = SamplingParams.from_options({"stop_token_ids": np.array([2, 3]), "seed": [4, 5]})
    assert (params.stop_token_ids, params.seed) == ((2, 3), (4, 5))
    assert SamplingParams.from_options({"stop_token_ids": []}).stop_token_ids == ()


def test_mapping_becomes_a_schedule() -> None:
    params = SamplingParams.from_options({"draft_len_schedule": {4: 1, 2: 3}})
    assert params.draft_len_schedule == DraftLenSchedule(((2, 3), (4, 1)))


def test_draft_len_and_schedule_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="draft_len and draft_len_schedule are both given"):
        SamplingParams(draft_len=1, draft_len_schedule=DraftLenSchedule(((1, 1),)))


def test_unknown_option_is_refused() -> None:
    words = (
        "unknown sampling option 'max_length'. The options are: temperature, top_p, top_k, min_p,"
        " max_tokens, seed, draft"
    )
    with pytest.raises(UsageError, match=words):
        SamplingParams.from_options({"max_length": 3})


def test_seed_of_each_prompt() -> None:
    assert [SamplingParams(seed=7).seed_of(index, 3) for index in range(3)] == [7, 7, 7]
    assert [SamplingParams(seed=(7, 8)).seed_of(index, 2) for index in range(2)] == [7, 8]
    with pytest.raises(
        UsageError, match=r"seed has 2 entries for 3 prompts. Give one integer, or one each"
    ):
        SamplingParams(seed=(7, 8)).seed_of(0, 3)
