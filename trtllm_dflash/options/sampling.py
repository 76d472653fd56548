"""The options of `Engine.generate`, `Engine.stream` and `run`: sampling, drafts, ends."""

from __future__ import annotations

import hashlib
import secrets
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import InitVar, dataclass, field, fields
from difflib import get_close_matches
from typing import Any

from trtllm_dflash.errors import UsageError
from trtllm_dflash.options.checks import (
    as_list,
    check_choice,
    check_count,
    check_flag,
    check_integer,
    checked_texts,
    shown,
    typed_text,
)
from trtllm_dflash.options.draft_len import check_draft_len
from trtllm_dflash.options.draft_len_schedule import DraftLenSchedule
from trtllm_dflash.options.draft_sources import ALLOWED, DRAFTS_HELP
from trtllm_dflash.options.fields import cli_option
from trtllm_dflash.options.guidance import Guidance, GuidanceOptions
from trtllm_dflash.options.logit_options import LogitOptionNames, LogitOptions
from trtllm_dflash.options.row_sampling import RowSamplingOptions

MAX_SEED = 2**64 - 1
FRESH_SEED_BITS = 53  # every JSON reader keeps such integers exact
MAX_N = 128
MAX_LOGPROBS = 20
MAX_STOP_WORDS = 64
MAX_STOP_WORD_LENGTH = 256  # characters
MAX_STOP_TOKEN_IDS = 1024
_MAX_SEEDS = 2**20
# What other libraries call our options.
OTHER_NAMES = {
    "bad_words_ids": "bad_words",
    "best_of": "n",
    "do_sample": "temperature",
    "end_id": "stop_token_ids",
    "eos_token_id": "stop_token_ids",
    "max_completion_tokens": "max_tokens",
    "max_output_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "num_return_sequences": "n",
    "random_seed": "seed",
    "sampling_seed": "seed",
    "sequence_bias": "logit_bias",
    "stop": "stop_words",
    "stop_sequences": "stop_words",
    "stop_strings": "stop_words",
    "top_logprobs": "logprobs",
}


class SamplingOptions(RowSamplingOptions, LogitOptionNames, GuidanceOptions, total=False):
    """`SamplingParams` as keyword arguments; a test keeps the two equal.

    Lists and arrays serve as tuples.
    """

    max_tokens: int
    max_new_tokens: int  # another name of max_tokens
    min_tokens: int
    seed: int | Iterable[int] | None
    n: int
    draft: bool
    draft_len: int | str | None
    draft_len_schedule: DraftLenSchedule | Mapping[int, int] | None
    drafts: str
    stop_token_ids: Iterable[int] | None
    ignore_eos: bool
    stop_words: str | Iterable[str]
    skip_special_tokens: bool
    token_texts: bool
    logprobs: int | None


@dataclass(frozen=True, kw_only=True)
class SamplingParams(Guidance, LogitOptions):
    """The options of one call: those of `RowSampling`, `LogitOptions` and `Guidance`, and these.

    A value of a wrong type or out of range raises UsageError.

    max_tokens           new tokens, at least 1. A sequence also ends, as "length", where prompt and
                         answer fill the engine's max_seq_len. `max_new_tokens` is another name.
    min_tokens           no stop token and no stop word ends an answer with its first `min_tokens`
                         tokens. A stop token among them is kept, and the answer goes on behind it:
                         tokens stay the model's own choice.
    seed                 None: a fresh one for each answer. One integer: each prompt draws numbers
                         of its own, derived from it and the prompt's index; the first prompt's
                         seed is the integer itself. Or one integer for each prompt.
                         `Generation.seed` is the one used, and repeats the answer alone.
                         An answer depends on prompt, options and its seed: not on its batch, nor
                         on drafts.
    n                    answers to each prompt. Each has its own seed, as prompts have.
    draft                False verifies no drafts: plain decoding, the same tokens.
    draft_len            drafts verified in a step, 0 to block_size - 1; "auto": as many as pay, by
                         what is accepted and what steps cost; None: the engine's own, which is
                         "auto" unless a number was given to `build --draft-len`. A
                         GPU engine may verify more: the next larger number that it has ready
                         (`Engine.load`), or what another answer in the step asks for.
    draft_len_schedule   draft_len by the number of sequences that generate together, as a
                         DraftLenSchedule or {batch size: draft_len}; not with draft_len.
    drafts               where drafts come from: "dflash", the drafter; "lookup", what followed the
                         last tokens earlier in the text; "both", block by block the better one.
    stop_token_ids       tokens that end a sequence and are its last token. None: the model's own;
                         empty: none.
    ignore_eos           leave the model's own stop tokens out.
    stop_words           texts that end an answer where the first of them begins; one string is one
                         word. They are looked for in the text with its special tokens.
    skip_special_tokens  False keeps special tokens in the text.
    token_texts          chunks of streams say what each token has made visible.
    logprobs             None: off. k: with each token its log probability, and those of the k most
                         likely tokens.
    """

    max_tokens: int = 128
    min_tokens: int = field(
        default=0,
        metadata=cli_option(
            "tokens before stop tokens and stop words can end an answer", low=0
        ),
    )
    seed: int | tuple[int, ...] | None = field(
        default=None,
        metadata=cli_option(
            "of the sampling; each prompt's own is derived from it [default: fresh ones]", low=0
        ),
    )
    n: int = field(default=1, metadata=cli_option("answers to each prompt", low=1))
    draft: bool = True
    draft_len: int | str | None = None
    draft_len_schedule: DraftLenSchedule | None = None
    drafts: str = field(default="both", metadata=cli_option(DRAFTS_HELP, choices=ALLOWED))
    stop_token_ids: tuple[int, ...] | None = None
    ignore_eos: bool = field(
        default=False, metadata=cli_option("do not stop at the model's stop tokens")
    )
    stop_words: tuple[str, ...] = field(
        default=(),
        metadata=cli_option(
            "end an answer where this text begins; may be given several times",
            metavar="TEXT",
            aliases=("--stop",),
            parse=typed_text,
        ),
    )
    skip_special_tokens: bool = True
    token_texts: bool = False
    logprobs: int | None = field(
        default=None,
        metadata=cli_option(
            "show the log probability of each token, and of the K most likely ones",
            metavar="K",
            low=0,
            high=MAX_LOGPROBS,
        ),
    )
    max_new_tokens: InitVar[int | None] = None

    def __post_init__(self, max_new_tokens: int | None) -> None:
        if max_new_tokens is not None:
            self._set("max_tokens", max_new_tokens)
        check_integer("max_tokens", self.max_tokens, low=1)
        check_integer("min_tokens", self.min_tokens, low=0)
        if self.min_tokens > self.max_tokens:
            raise UsageError(
                f"min_tokens is {shown(self.min_tokens)}, more than max_tokens,"
                f" {shown(self.max_tokens)}."
            )
        super().__post_init__()
        check_integer("n", self.n, low=1, high=MAX_N)
        if self.logprobs is not None:
            check_integer("logprobs", self.logprobs, low=0, high=MAX_LOGPROBS)
        for name in ("draft", "ignore_eos", "skip_special_tokens", "token_texts"):
            check_flag(name, getattr(self, name))
        check_choice("drafts", self.drafts, ALLOWED)
        self._take_seeds()
        self._take_draft_lens()
        self._take_stop_tokens()
        words = checked_texts(
            "stop_words",
            self.stop_words,
            limit=MAX_STOP_WORDS,
            max_length=MAX_STOP_WORD_LENGTH,
        )
        self._set("stop_words", words)

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _take_seeds(self) -> None:
        given: Any = self.seed
        if given is None:
            return
        if _is_scalar(given):
            check_integer("seed", given, low=0, high=MAX_SEED)
            self._set("seed", int(given))
            return
        expected = "an integer, one for each prompt, or None"
        seeds = as_list("seed", given, expected=expected, limit=_MAX_SEEDS)
        for seed in seeds:
            check_integer("seed", seed, low=0, high=MAX_SEED)
        self._set("seed", tuple(map(int, seeds)))

    def _take_draft_lens(self) -> None:
        if isinstance(self.draft_len_schedule, Mapping):
            self._set(
                "draft_len_schedule", DraftLenSchedule.from_mapping(self.draft_len_schedule)
            )
        schedule = self.draft_len_schedule
        check_draft_len(self.draft_len)
        if not isinstance(schedule, DraftLenSchedule | None):
            raise UsageError(
                f"draft_len_schedule is {shown(schedule)}, expected a mapping"
                " {batch size: draft_len}."
            )
        if self.draft_len is not None and schedule is not None:
            raise UsageError(
                "draft_len and draft_len_schedule are both given. Give one of them."
            )

    def _take_stop_tokens(self) -> None:
        if self.stop_token_ids is None:
            return
        expected = "a list of token ids or None"
        tokens = as_list(
            "stop_token_ids", self.stop_token_ids, expected=expected, limit=MAX_STOP_TOKEN_IDS
        )
        check_count("stop_token_ids", len(tokens), MAX_STOP_TOKEN_IDS)
        for token in tokens:
            check_integer("stop_token_ids", token, low=0)
        self._set("stop_token_ids", tuple(map(int, tokens)))

    @classmethod
    def of_call(
        cls, given: SamplingParams | None, options: Mapping[str, Any]
    ) -> SamplingParams:
        """Return what a call was given: either `given`, or one from keyword arguments.

        Raises:
            UsageError: for both, or what is no SamplingParams.
        """
        if given is None:
            return cls.from_options(options)
        if not isinstance(given, cls):
            raise UsageError(f"sampling_params is {shown(given)}, expected a SamplingParams.")
        if options:
            raise UsageError(
                f"give either sampling_params or options ({', '.join(options)}), not both."
            )
        return given

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> SamplingParams:
        """Build from keyword arguments, and warn of those without effect.

        Raises:
            UsageError: for an unknown name, with the known ones.
        """
        known = [field.name for field in fields(cls)]
        if {"max_tokens", "max_new_tokens"} <= options.keys():
            raise UsageError(
                "give either max_tokens or max_new_tokens, not both: they are one."
            )
        for name in options:
            if name not in (*known, "max_new_tokens"):
                raise UsageError(
                    f"unknown sampling option {shown(name)}{_meant(name, known)}. The options"
                    f" are: {', '.join(known)}."
                )
        params = cls(**options)
        unused = unused_without_temperature(options)
        if unused:
            warnings.warn(no_effect_warning(unused), stacklevel=_depth_of_caller())
        return params

    def seed_of(self, index: int, num_prompts: int, sample: int = 0) -> int:
        """Return the seed of answer `sample` to prompt `index`; without a seed a fresh one.

        Raises:
            UsageError: if there are several seeds, but not `num_prompts`.
        """
        if self.seed is None:
            return secrets.randbits(FRESH_SEED_BITS)
        if not isinstance(self.seed, tuple):
            seed = _derived(self.seed, "prompt", index)
        elif len(self.seed) == num_prompts:
            seed = self.seed[index]
        else:
            raise UsageError(
                f"seed has {len(self.seed)} entries for {num_prompts} prompts. Give one integer, or"
                " one each."
            )
        return _derived(seed, "sample", sample)


def unused_without_temperature(options: Mapping[str, Any]) -> list[str]:
    """Return the names of given options that do nothing because no temperature is given.

    An explicit temperature, 0 included, is a choice: then there are none.
    """
    if options.get("temperature") is not None:
        return []
    off = {"top_p": (1,), "top_k": (0, -1), "min_p": (0,), "seed": (None,), "n": (1,)}
    unused = []
    for name, values in off.items():
        if name in options and not any(_equal(options[name], value) for value in values):
            unused.append(name)
    return unused


def no_effect_warning(names: Iterable[str], temperature: str = "a temperature") -> str:
    """Return the sentence about options that do nothing in greedy decoding."""
    *others, last = names
    listed = f"{', '.join(others)} and {last}" if others else last
    verb = "have" if others else "has"
    return f"{listed} {verb} no effect without {temperature}: decoding is greedy by default."


def _meant(name: str, known: Sequence[str]) -> str:
    """Return which known option a name of another library, or a misspelled one, may stand for."""
    near = get_close_matches(name, known, n=1, cutoff=0.8)
    meant = OTHER_NAMES.get(name) or (near[0] if near else None)
    return f" (did you mean {meant}?)" if meant else ""


def _equal(given: Any, value: Any) -> bool:
    return _is_scalar(given) and bool(given == value)


def _is_scalar(value: Any) -> bool:
    return not isinstance(value, Iterable) or isinstance(value, str | bytes)


def _derived(seed: int, purpose: str, index: int) -> int:
    """Return the seed of the prompt or sample with a number; the first one's is `seed` itself."""
    if index == 0:
        return seed
    digest = hashlib.sha256(f"{seed} {purpose} {index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - FRESH_SEED_BITS)


def _depth_of_caller() -> int:
    """Return the stacklevel at which a warning names the first frame outside this package."""
    package = __name__.partition(".")[0]
    frame, depth = sys._getframe(1), 1
    while frame.f_back and frame.f_globals.get("__name__", "").startswith(package):
        frame, depth = frame.f_back, depth + 1
    return depth
