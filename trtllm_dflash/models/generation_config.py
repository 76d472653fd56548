"""What generation_config.json asks of `generate` that engines do not do by themselves.

A checkpoint's defaults change Hugging Face's answers, and so would an evaluation compare unequal
things. Every key that `generate` knows is in one of the groups here; a test compares them with the
installed transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trtllm_dflash.models.hf_config import quote

_NONE = (None,)
_EMPTY: tuple[Any, ...] = (None, [], {})
# Keys that change greedy tokens -> their values that do not.
CHANGES_TOKENS: Mapping[str, tuple[Any, ...]] = {
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "num_beams": (None, 1),
    "num_beam_groups": (None, 1),
    "penalty_alpha": (None, 0),
    "dola_layers": _NONE,
    "repetition_penalty": (None, 1),
    "encoder_repetition_penalty": (None, 1),
    "no_repeat_ngram_size": (None, 0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "bad_words_ids": _EMPTY,
    "force_words_ids": _EMPTY,
    "constraints": _EMPTY,
    "forced_bos_token_id": _NONE,
    "forced_eos_token_id": _NONE,
    "exponential_decay_length_penalty": _EMPTY,
    "suppress_tokens": _EMPTY,
    "begin_suppress_tokens": _EMPTY,
    "sequence_bias": _EMPTY,
    "token_healing": (None, False),
    "guidance_scale": (None, 1),
    "watermarking_config": _EMPTY,
    "stop_strings": _EMPTY,
    "max_time": _NONE,
    "cache_implementation": (
        None,
        "dynamic",
        "dynamic_full",
        "static",
        "offloaded",
        "offloaded_static",
        "sliding_window",
        "hybrid",
        "hybrid_chunked",
        "offloaded_hybrid",
        "offloaded_hybrid_chunked",
        "paged",
    ),
}
# Defaults of sampling -> values that change nothing.
SAMPLING: Mapping[str, tuple[Any, ...]] = {
    "do_sample": (None, False),
    "temperature": (None, 1),
    "top_k": (None, 0),
    "top_p": (None, 1),
    "min_p": (None, 0),
    "top_h": _NONE,
    "typical_p": (None, 1),
    "epsilon_cutoff": (None, 0),
    "eta_cutoff": (None, 0),
}
# Keys that every request states, that we read, or that change no token of one greedy sequence.
WITHOUT_EFFECT = frozenset(
    {
        # lengths are the request's; stop tokens are read
        *("max_length", "max_new_tokens", "eos_token_id", "bos_token_id", "pad_token_id"),
        # of beams, of encoders, or the same argmax
        *("early_stopping", "length_penalty", "diversity_penalty", "decoder_start_token_id"),
        *("renormalize_logits", "remove_invalid_values", "num_return_sequences"),
        # drafts that are verified
        *("use_mtp", "is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule"),
        *("assistant_confidence_threshold", "prompt_lookup_num_tokens"),
        *("max_matching_ngram_size", "assistant_early_exit", "assistant_lookbehind"),
        *("target_lookbehind", "assistant_ensemble_weight", "speculation_type"),
        # how it is computed or returned
        *("use_cache", "cache_config", "max_cache_len", "compile_config", "disable_compile"),
        *("low_memory", "prefill_chunk_size", "continuous_batching_config"),
        *("output_attentions", "output_hidden_states", "output_scores", "output_logits"),
        *("return_dict_in_generate", "transformers_version"),
    }
)


def unmet_settings(
    generation_config: Mapping[str, Any] | None, config_json: Mapping[str, Any]
) -> list[str]:
    """List warnings that name every setting of `generate` that an engine does not follow.

    Without a generation_config.json the keys of config.json count, as in Hugging Face.
    """
    file = "config.json" if generation_config is None else "generation_config.json"
    settings = settings_of(generation_config, config_json)
    warnings = []
    changed = _named(settings, CHANGES_TOKENS)
    if changed:
        warnings.append(
            f"{file} sets {changed}: Hugging Face's generate follows it, so that its greedy answers"
            " may differ; an engine does not"
        )
    sampled = _named(settings, SAMPLING)
    if sampled:
        warnings.append(
            f"{file} sets {sampled}: these are its defaults of sampling; an engine is greedy unless"
            " a request gives a temperature; `serve` follows temperature, top_k, top_p and min_p"
        )
    return warnings


def settings_of(
    generation_config: Mapping[str, Any] | None, config_json: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Return the settings of `generate` from where Hugging Face reads them."""
    return _in_config(config_json) if generation_config is None else generation_config


def _in_config(config_json: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of config.json, those of a decoder's section where they are not outside."""
    text = config_json.get("text_config")
    outer = {key: value for key, value in config_json.items() if value is not None}
    return {**text, **outer} if isinstance(text, dict) else outer


def _named(settings: Mapping[str, Any], table: Mapping[str, tuple[Any, ...]]) -> str:
    """Return the keys of a table with telling values, for people."""
    found = [
        f"{key} {quote(settings[key])}"
        for key, neutral in table.items()
        if key in settings and settings[key] not in neutral
    ]
    return ", ".join(found)
