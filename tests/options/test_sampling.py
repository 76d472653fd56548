"""The sampling options: ranges, names, and the two spellings of them."""

from __future__ import annotations

import math
import warnings
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
        ("top_k", -2, "top_k is -2, expected an integer of at least 0"),
        ("min_p", -0.1, "min_p is -0.1, expected a number from 0 to 1"),
        ("min_p", 1.5, "min_p is 1.5, expected a number from 0 to 1"),
        ("seed", -1, "seed is -1, expected an integer from 0 to 18446744073709551615"),
        ("seed", [1, -2], "seed is -2, expected an integer from 0"),
        ("seed", 2**64, "seed is 18446744073709551616, expected an integer from 0"),
        ("seed", b"12", "seed is b'12', expected an integer from 0"),
        ("seed", {1, 2}, "seed is {1, 2}, expected an integer, one for each prompt, or None"),
        ("n", 0, "n is 0, expected an integer from 1 to 128"),
        ("n", None, "n is None, expected an integer"),
        ("min_tokens", -1, "min_tokens is -1, expected an integer of at least 0"),
        ("min_tokens", 129, "min_tokens is 129, more than max_tokens, 128"),
        ("logprobs", -1, "logprobs is -1, expected an integer from 0 to 20"),
        ("logprobs", True, "logprobs is True, expected an integer from 0 to 20"),
        ("ignore_eos", 0, "ignore_eos is 0, expected True or False"),
        ("skip_special_tokens", "no", "skip_special_tokens is 'no', expected True or False"),
        ("stop_words", 3, "stop_words is 3, expected a text or a list of texts"),
        ("stop_words", b"ab", "stop_words is b'ab', expected a text or a list of texts"),
        ("stop_words", ["a", b"b"], "stop_words holds b'b', expected texts that are not empty"),
        ("stop_words", {"a": 1}, "stop_words is {'a': 1}, expected a text or a list of texts"),
        ("temperature", 10**400, "temperature is 10{20}.*, expected 0"),
        ("temperature", 1e39, "temperature is 1e[+]39, expected 0"),
        ("stop_token_ids", b"ab", "stop_token_ids is b'ab', expected a list of token ids"),
        ("stop_token_ids", {3: 4}, "stop_token_ids is {3: 4}, expected a list of token ids"),
        ("stop_token_ids", frozenset([3]), "stop_token_ids is frozenset"),
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
        ".* max_tokens, min_tokens, seed, n, draft"
    )
    with pytest.raises(UsageError, match=words):
        SamplingParams.from_options({"max_length": 3})


def test_seed_of_each_prompt() -> None:
    derived = [SamplingParams(seed=7).seed_of(index, 3) for index in range(3)]
    assert derived[0] == 7, "the first prompt's is the seed itself"
    assert derived[1:] == [6923766057188475, 950058407614783], "and so they stay for ever"
    assert [SamplingParams(seed=(7, 8)).seed_of(index, 2) for index in range(2)] == [7, 8]
    with pytest.raises(
        UsageError, match=r"seed has 2 entries for 3 prompts. Give one integer, or one each"
    ):
        SamplingParams(seed=(7, 8)).seed_of(0, 3)


def test_no_two_answers_share_a_seed() -> None:
    params = SamplingParams(seed=7, n=3)
    seeds = {params.seed_of(prompt, 50, sample) for prompt in range(50) for sample in range(3)}
    assert len(seeds) == 150


def test_no_seed_is_a_fresh_one_each_time() -> None:
    assert len({SamplingParams().seed_of(0, 1) for _ in range(20)}) == 20


def test_idioms_of_other_libraries() -> None:
    assert SamplingParams(top_k=-1) == SamplingParams(top_k=0)
    assert SamplingParams.from_options({"seed": np.uint64(3)}).seed == 3
    assert SamplingParams.from_options({"stop_words": "city of"}).stop_words == ("city of",)
    assert SamplingParams.from_options({"stop_words": None}).stop_words == ()
    assert SamplingParams.from_options({"stop_token_ids": range(2)}).stop_token_ids == (0, 1)


def test_positive_numbers_stay_positive_in_float32() -> None:
    values = SamplingParams(temperature=1e-300, top_p=1e-50).row_values()
    assert np.float32(values["temperature"]) > 0
    assert np.float32(values["top_p"]) > 0


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"top_p": 0.5, "top_k": 3, "seed": 9}, "top_p, top_k and seed have no effect"),
        ({"min_p": 0.5}, "min_p has no effect"),
        ({"n": 2}, "n has no effect"),
    ],
)
def test_options_without_a_temperature_warn(options: dict[str, Any], names: str) -> None:
    with pytest.warns(UserWarning, match=names) as warned:
        SamplingParams.from_options(options)
    assert warned[0].filename == __file__


@pytest.mark.parametrize(
    "options",
    [
        {"top_p": 0.5, "temperature": 0},
        {"top_p": 0.5, "temperature": 1.0},
        {"top_p": 1.0, "top_k": -1, "seed": None, "min_p": 0, "n": 1},
    ],
)
def test_a_chosen_temperature_does_not_warn(options: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SamplingParams.from_options(options)


def test_numbers_too_long_to_print_are_refused() -> None:
    for name in ("max_tokens", "seed", "top_k", "n", "draft_len"):
        with pytest.raises(UsageError, match=f"{name} is a value of type int that cannot"):
            SamplingParams.from_options({name: -(10**5000)})


@pytest.mark.parametrize(
    ("name", "meant"),
    [("stop", "stop_words"), ("temprature", "temperature"), ("min_new_tokens", "min_tokens")],
)
def test_an_unknown_name_may_be_near_a_known_one(name: str, meant: str) -> None:
    with pytest.raises(UsageError, match=rf"option '{name}' \(did you mean {meant}\?\)\."):
        SamplingParams.from_options({name: 1})
