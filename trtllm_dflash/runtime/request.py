"""From prompts and options to checked requests: everything that one sequence needs, in numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, TypeAlias

import numpy as np

from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.engine_dir.files import TOKENIZER_FILE
from trtllm_dflash.errors import UsageError
from trtllm_dflash.options.draft_len_schedule import DraftLenSchedule
from trtllm_dflash.options.sampling import SamplingParams
from trtllm_dflash.runtime.sessions.base import Float32, Int64, SlotSampling
from trtllm_dflash.runtime.text.tokenizer import Tokenizer

InputIds: TypeAlias = "Iterable[int] | Int64"
Prompt: TypeAlias = "str | InputIds"


class PromptError(UsageError):
    """A prompt that this engine cannot take: `index` says which, `problem` why (a whole sentence
    after "prompt N").
    """

    def __init__(self, index: int, problem: str) -> None:
        super().__init__(f"prompt {index} {problem}")
        self.index = index
        self.problem = problem


@dataclass(frozen=True)
class StepWidths:
    """Tokens of each slot in a generation step, the anchor and the drafts to verify, by the number
    of slots in it.
    """

    draft_len: int
    schedule: DraftLenSchedule | None = None

    def width_for(self, batch: int) -> int:
        """The width of a step of `batch` slots."""
        return 1 + (self.draft_len if self.schedule is None else self.schedule.draft_len(batch))

    @property
    def max_width(self) -> int:
        """The widest that a step can be."""
        return 1 + (self.draft_len if self.schedule is None else self.schedule.max_draft_len)


@dataclass(frozen=True)
class Request:
    """One sequence to generate."""

    index: int
    input_ids: Int64
    max_tokens: int  # already within max_seq_len
    stop_token_ids: frozenset[int]
    widths: StepWidths
    sampling: SlotSampling  # with uniforms up to a block behind the last position that it can reach


def as_prompts(prompts: Prompt | Iterable[Prompt]) -> list[Prompt]:
    """A list of prompts; a lone string or a lone sequence of token ids counts as one prompt."""
    if isinstance(prompts, str):
        return [prompts]
    if not isinstance(prompts, Iterable):
        raise UsageError(
            f"prompts is {prompts!r}, expected a list of strings or of token-id lists."
        )
    items: list[Any] = list(prompts)
    return [items] if items and isinstance(items[0], Real) else items


def tokenize_prompt(prompt: Prompt, tokenizer: Tokenizer | None) -> InputIds:
    """A prompt's token ids; text for an engine without tokenizer files raises UsageError."""
    if not isinstance(prompt, str):
        return prompt
    if tokenizer is None:
        raise UsageError(
            f"a prompt is text, and this engine has no {TOKENIZER_FILE}. Give lists of token ids,"
            " or build the engine from a checkpoint with its tokenizer files."
        )
    return tokenizer.encode(prompt)


def make_requests(
    prompts: Sequence[InputIds], sampling: SamplingParams, config: EngineConfig
) -> list[Request]:
    """Check every prompt against the engine's limits before any step runs; a bad one raises
    UsageError naming it.
    """
    stops = config.eos_token_ids if sampling.stop_token_ids is None else sampling.stop_token_ids
    widths = step_widths(sampling, config)
    requests = []
    for index, prompt in enumerate(prompts):
        input_ids = _checked_ids(prompt, index, config)
        max_tokens = min(sampling.max_tokens, config.max_seq_len - len(input_ids))
        positions = len(input_ids) + max_tokens + config.block_size
        requests.append(
            Request(
                index=index,
                input_ids=input_ids,
                max_tokens=max_tokens,
                stop_token_ids=frozenset(int(token) for token in stops),
                widths=widths,
                sampling=SlotSampling(
                    temperature=float(sampling.temperature),
                    top_p=float(sampling.top_p),
                    top_k=min(int(sampling.top_k), config.vocab_size),
                    uniforms=_uniforms(sampling, sampling.seed_of(index, len(prompts)), positions),
                ),
            )
        )
    return requests


def step_widths(sampling: SamplingParams, config: EngineConfig) -> StepWidths:
    """How wide steps are; drafts that the engine does not have raise UsageError."""
    if not sampling.draft:
        return StepWidths(0)
    if sampling.draft_len is None and sampling.draft_len_schedule is None:
        return StepWidths(config.draft_len)
    widths = StepWidths(int(sampling.draft_len or 0), sampling.draft_len_schedule)
    if widths.max_width > config.block_size:
        most = config.block_size - 1
        why = (
            f"a block of {config.block_size} holds {most} drafts"
            if config.speculates
            else "it has no drafter"
        )
        given = "draft_len is" if widths.schedule is None else "draft_len_schedule goes up to"
        raise UsageError(
            f"{given} {widths.max_width - 1}, and this engine takes 0 to {most}: {why}."
        )
    return widths


def _uniforms(sampling: SamplingParams, seed: int, count: int) -> Float32:
    """`count` numbers in [0, 1), each a multiple of 2⁻²⁴ (exact in float32); zeros when greedy. A
    longer series begins with the shorter one, and number p belongs to position p: an answer that is
    given back as part of the prompt goes on as it would have.

    Raw bits, because NumPy promises the same ones in every version; of its distributions it does
    not.
    """
    if sampling.temperature == 0:
        return np.zeros(count, np.float32)
    bits = np.random.Philox(int(seed)).random_raw(count)
    return ((bits >> np.uint64(40)).astype(np.float64) * 2.0**-24).astype(np.float32)


def _checked_ids(prompt: InputIds, index: int, config: EngineConfig) -> Int64:
    if not isinstance(prompt, Iterable):
        raise PromptError(index, f"is {prompt!r}, expected a string or a list of token ids.")
    tokens = list(prompt)
    problem = _problem_of_tokens(tokens, config.vocab_size) or _problem_of_length(
        len(tokens), config
    )
    if problem is not None:
        raise PromptError(index, problem)
    return np.array(tokens, np.int64)


def _problem_of_tokens(tokens: list[Any], vocab_size: int) -> str | None:
    for place, token in enumerate(tokens):
        if isinstance(token, bool) or not isinstance(token, Integral):
            return (
                f"has at place {place} {token!r}, a {type(token).__name__}: expected an integer"
                " token id."
            )
        if not 0 <= int(token) < vocab_size:
            return (
                f"has at place {place} the id {token}, outside the vocabulary (0 to"
                f" {vocab_size - 1})."
            )
    return None


def _problem_of_length(length: int, config: EngineConfig) -> str | None:
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
