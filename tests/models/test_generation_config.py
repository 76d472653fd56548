"""Settings of Hugging Face's generate: each is read, without effect, or named."""

from __future__ import annotations

from typing import Any

import pytest

from trtllm_dflash.models.generation_config import (
    CHANGES_TOKENS,
    SAMPLING,
    WITHOUT_EFFECT,
    unmet_settings,
)

TELLING: dict[str, Any] = {
    "repetition_penalty": 1.1,
    "no_repeat_ngram_size": 3,
    "bad_words_ids": [[7]],
    "suppress_tokens": [1, 2],
    "begin_suppress_tokens": [220],
    "forced_bos_token_id": 0,
    "forced_eos_token_id": [2],
    "min_length": 5,
    "min_new_tokens": 5,
    "sequence_bias": [[[7], -10.0]],
    "encoder_no_repeat_ngram_size": 2,
    "encoder_repetition_penalty": 1.5,
    "num_beams": 4,
    "penalty_alpha": 0.6,
    "dola_layers": "high",
    "exponential_decay_length_penalty": [5, 1.1],
    "cache_implementation": "quantized",
}


def test_every_setting_of_transformers_is_in_one_group() -> None:
    transformers = pytest.importorskip("transformers")
    known = {name for name in vars(transformers.GenerationConfig()) if name[0] != "_"}
    groups = (set(CHANGES_TOKENS), set(SAMPLING), set(WITHOUT_EFFECT))
    assert known - set.union(*groups) == set(), "new in transformers: sort it into a group"
    assert sum(map(len, groups)) == len(set.union(*groups))


@pytest.mark.parametrize("key", TELLING)
def test_settings_that_change_greedy_tokens_are_named(key: str) -> None:
    (warning,) = unmet_settings({key: TELLING[key]}, {})
    assert f"generation_config.json sets {key} " in warning
    assert "greedy answers" in warning


def test_defaults_of_sampling_are_named() -> None:
    published = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95}
    (warning,) = unmet_settings(published | {"eos_token_id": [1], "pad_token_id": 1}, {})
    assert "do_sample true, temperature 0.6, top_k 20, top_p 0.95: these are its" in warning


def test_neutral_settings_are_not_named() -> None:
    neutral = {"repetition_penalty": 1.0, "temperature": 1.0, "top_k": None, "num_beams": 1}
    assert unmet_settings(neutral | {"suppress_tokens": [], "max_new_tokens": 9}, {}) == []


def test_old_places_of_settings() -> None:
    (warning,) = unmet_settings(None, {"hidden_size": 8, "repetition_penalty": 1.2})
    assert "config.json sets repetition_penalty 1.2" in warning
    assert unmet_settings({}, {"repetition_penalty": 1.2}) == []
