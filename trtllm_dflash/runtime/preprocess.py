"""From prompts and options to checked requests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

import numpy as np

from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.engine_dir.io_tensors import KEY_WORDS
from trtllm_dflash.errors import UsageError
from trtllm_dflash.options.checks import as_list, check_integer, shown
from trtllm_dflash.options.draft_len import AUTO
from trtllm_dflash.options.draft_sources import SOURCE_BITS
from trtllm_dflash.options.row_sampling import SAMPLING_INPUTS
from trtllm_dflash.options.sampling import SamplingParams
from trtllm_dflash.runtime.bad_words import BadWords
from trtllm_dflash.runtime.prompt_inputs import InputIds, PromptError, read_tokens
from trtllm_dflash.runtime.request import Request, StepWidths
from trtllm_dflash.runtime.sessions.base import Int64, SlotSampling
from trtllm_dflash.runtime.text.tokenizer import Tokenizer

__all__ = [
    "PromptError",
    "check_draft_lens",
    "check_stop_words",
    "make_requests",
    "step_widths",
]


def check_stop_words(sampling: SamplingParams, tokenizer: Tokenizer | None) -> None:
    """Raise UsageError for stop words or bad words without a tokenizer: tokens have no text."""
    if sampling.stop_words and tokenizer is None:
        raise UsageError("stop_words is for engines with a tokenizer. Give stop_token_ids.")
    if sampling.bad_words and tokenizer is None:
        raise UsageError(
            "bad_words is for engines with a tokenizer. Give a logit_bias of -100."
        )


def make_requests(
    prompts: Sequence[InputIds],
    sampling: SamplingParams,
    config: EngineConfig,
    bad_words: BadWords = (),
) -> list[Request]:
    """Return `n` requests for each prompt, prompt by prompt; `bad_words` are tokens.

    Raises:
        PromptError: for the first prompt that does not fit the engine.
        UsageError: for sampling options, drafts or seeds that do not fit.
    """
    _check_sampling_inputs(sampling, config)
    _check_adjustments(sampling, config)
    _check_logits(sampling, config)
    _check_lookup(sampling, config)
    widths = step_widths(sampling, config)
    stop_token_ids = frozenset(int(token) for token in _stop_token_ids(sampling, config))
    _check_stop_tokens(sampling, config)
    requests = []
    for index, prompt in enumerate(prompts):
        input_ids = _checked_ids(prompt, index, config)
        max_tokens = min(sampling.max_tokens, config.max_seq_len - len(input_ids))
        for sample in range(sampling.n):
            seed: int | None = sampling.seed_of(index, len(prompts), sample)
            if sampling.temperature == 0:
                seed = None
            slot_sampling = SlotSampling(
                **sampling.row_values(),
                noise_key=noise_key(seed),
                wants_logits=sampling.logprobs is not None,
                wants_drafts=sampling.grammar is not None,
                draft_sources=SOURCE_BITS[sampling.drafts],
                prompt_len=len(input_ids),
                logit_bias=sampling.biases,
                bad_words=bad_words,
            )
            request = Request(
                index,
                input_ids,
                max_tokens,
                stop_token_ids,
                widths,
                slot_sampling,
                seed=seed,
                sample_index=sample,
                min_tokens=sampling.min_tokens,
                logprobs=sampling.logprobs,
            )
            requests.append(request)
    return requests


def _check_logits(sampling: SamplingParams, config: EngineConfig) -> None:
    """Raise UsageError for `logprobs` of an engine whose logits are no output."""
    if sampling.logprobs is not None and not config.has_logits:
        raise UsageError(
            "logprobs needs the engine's logits, and this engine was built without them. Build it"
            " with --gather-generation-logits."
        )


def _check_lookup(sampling: SamplingParams, config: EngineConfig) -> None:
    """Raise UsageError for drafts from lookup alone where steps look nothing up."""
    if sampling.drafts != "lookup" or config.has_lookup:
        return
    why = "it was built by a version without it: build it again"
    if not config.speculates:
        why = "it has no drafter, and verifies no drafts"
    raise UsageError(f'drafts is "lookup", and this engine looks none up: {why}.')


def _check_adjustments(sampling: SamplingParams, config: EngineConfig) -> None:
    """Raise UsageError for biases and bad words that the engine does not have."""
    for name in ("logit_bias", "bad_words"):
        if getattr(sampling, name) and not config.has_adjust:
            raise UsageError(
                f"{name} is given, and this engine was built by a version without it. Build it"
                " again."
            )
    for token, _ in sampling.biases:
        if token >= config.vocab_size:
            raise UsageError(
                f"logit_bias has the token {shown(token)}, outside the vocabulary (0 to"
                f" {config.vocab_size - 1})."
            )


def _check_sampling_inputs(sampling: SamplingParams, config: EngineConfig) -> None:
    """Raise UsageError for an option that an engine of an earlier version has no input for."""
    for row in SAMPLING_INPUTS:
        value = getattr(sampling, row.name)
        if row not in config.sampling_inputs and value != row.default:
            raise UsageError(
                f"{row.name} is {value}, and this engine was built by a version without it. Build"
                " it again."
            )


def step_widths(sampling: SamplingParams, config: EngineConfig) -> StepWidths:
    """Return how wide steps are; drafts that the engine does not have raise UsageError."""
    if not sampling.draft:
        return StepWidths(0)
    draft_len = sampling.draft_len
    if draft_len is None and sampling.draft_len_schedule is None:
        draft_len = config.own_draft_len
    if draft_len == AUTO:
        return StepWidths(config.block_size - 1, is_auto=True)
    widths = StepWidths(int(draft_len or 0), sampling.draft_len_schedule)
    if widths.max_width > config.block_size:
        limit = config.block_size - 1
        why = "it has no drafter"
        if config.speculates:
            why = f"a block of {config.block_size} holds {limit} drafts"
        given = "draft_len is" if widths.schedule is None else "draft_len_schedule goes up to"
        raise UsageError(
            f"{given} {shown(widths.max_width - 1)}, and this engine takes 0 to {limit}: {why}."
        )
    return widths


def check_draft_lens(draft_lens: Iterable[int], config: EngineConfig) -> frozenset[int]:
    """Return numbers of drafts that requests will ask for; UsageError for what none can have."""
    advice = f" A block of this engine has {config.block_size} tokens."
    given = as_list("draft_lens", draft_lens, expected="numbers of drafts")
    if not given:
        raise UsageError("draft_lens is empty. Give a number of drafts, such as 0, or None.")
    for draft_len in given:
        check_integer("draft_lens", draft_len, low=0, high=config.block_size - 1, advice=advice)
    return frozenset(given)


def _stop_token_ids(sampling: SamplingParams, config: EngineConfig) -> tuple[int, ...]:
    if sampling.stop_token_ids is not None:
        return sampling.stop_token_ids
    return () if sampling.ignore_eos else config.eos_token_ids


def _check_stop_tokens(sampling: SamplingParams, config: EngineConfig) -> None:
    """Raise UsageError for a stop token that can never come."""
    for token in sampling.stop_token_ids or ():
        if token >= config.vocab_size and token not in config.eos_token_ids:
            raise UsageError(
                f"stop_token_ids has {shown(token)}, outside the vocabulary (0 to"
                f" {config.vocab_size - 1})."
            )


def noise_key(seed: int | None) -> tuple[int, ...]:
    """Return the noise key of a seed, numbers below 2³¹; zeros if greedy.

    They come from raw bits: NumPy promises those in every version, but not its distributions.
    """
    if seed is None:
        return (0,) * KEY_WORDS
    bits = np.random.Philox(seed).random_raw(KEY_WORDS)
    return tuple(int(word) for word in bits >> np.uint64(33))


def _checked_ids(prompt: InputIds, index: int, config: EngineConfig) -> Int64:
    tokens = read_tokens(prompt, index)
    problem = _token_problem(tokens, config.vocab_size) or _length_problem(len(tokens), config)
    if problem is not None:
        raise PromptError(index, problem)
    return np.array(tokens, np.int64)


def _token_problem(tokens: list[Any], vocab_size: int) -> str | None:
    for place, token in enumerate(tokens):
        if isinstance(token, bool) or not isinstance(token, Integral):
            return (
                f"has at place {place} {shown(token)}, a {type(token).__name__}: expected an"
                " integer token id."
            )
        if not 0 <= int(token) < vocab_size:
            return (
                f"has at place {place} the id {shown(token)}, outside the vocabulary (0 to"
                f" {vocab_size - 1})."
            )
    return None


def _length_problem(length: int, config: EngineConfig) -> str | None:
    if length == 0:
        return "is empty: there is no token to continue from. Give at least one token."
    if length > config.max_input_len:
        return (
            f"has {length} tokens, and prompts of this engine hold at most {config.max_input_len}"
            " (max_input_len). Shorten it, or build with a larger --max-input-len."
        )
    if length + 1 > config.max_seq_len:
        return (
            f"has {length} tokens, and sequences of this engine hold at most {config.max_seq_len}"
            " (max_seq_len): there is no room for a new token. Shorten it, or build with a larger"
            " --max-seq-len."
        )
    return None
