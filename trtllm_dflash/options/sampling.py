"""The options of `Engine.generate`, `Engine.stream` and `run`: sampling, drafts, ends."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import InitVar, dataclass, field, fields
from typing import Any

from trtllm_dflash.errors import UsageError
from trtllm_dflash.options.checks import check_integer
from trtllm_dflash.options.draft_len_schedule import DraftLenSchedule
from trtllm_dflash.options.fields import cli_option
from trtllm_dflash.options.row_sampling import RowSampling, RowSamplingOptions


class SamplingOptions(RowSamplingOptions, total=False):
    """`SamplingParams` as keyword arguments; a test keeps the two equal.

    Lists and arrays serve as tuples.
    """

    max_tokens: int
    max_new_tokens: int  # another name of max_tokens
    seed: int | Iterable[int]
    draft: bool
    draft_len: int | None
    draft_len_schedule: DraftLenSchedule | Mapping[int, int] | None
    stop_token_ids: Iterable[int] | None


@dataclass(frozen=True, kw_only=True)
class SamplingParams(RowSampling):
    """The options of one call: those of `RowSampling` and the following.

    A value out of range raises UsageError.

    max_tokens           new tokens, at least 1. A sequence also ends, as "length", where prompt and
                         answer fill the engine's max_seq_len. `max_new_tokens` is another name.
    seed                 one integer for every prompt, or one for each. A prompt's tokens depend on
                         the prompt, these options and its seed alone: not on its batch, nor on
                         drafts. Equal prompts with one seed get equal answers.
    draft                False verifies no drafts: plain decoding, the same tokens.
    draft_len            drafts verified in a step, 0 to block_size - 1; None: the engine's own.
    draft_len_schedule   draft_len by the number of sequences that generate together, as a
                         DraftLenSchedule or {batch size: draft_len}; not with draft_len.
    stop_token_ids       tokens that end a sequence and are its last token. None: the model's own;
                         empty: none.
    """

    max_tokens: int = 128
    seed: int | tuple[int, ...] = field(
        default=0, metadata=cli_option("of the sampling, the same for every prompt")
    )
    draft: bool = True
    draft_len: int | None = None
    draft_len_schedule: DraftLenSchedule | None = None
    stop_token_ids: tuple[int, ...] | None = None
    max_new_tokens: InitVar[int | None] = None

    def __post_init__(self, max_new_tokens: int | None) -> None:
        if max_new_tokens is not None:
            object.__setattr__(self, "max_tokens", max_new_tokens)
        check_integer("max_tokens", self.max_tokens, low=1)
        super().__post_init__()
        for seed in self.seed if isinstance(self.seed, tuple) else (self.seed,):
            check_integer("seed", seed, low=0)
        if not isinstance(self.draft, bool):
            raise UsageError(f"draft is {self.draft!r}, expected True or False.")
        self._check_draft_lens()
        self._check_stop_tokens()

    def _check_draft_lens(self) -> None:
        schedule = self.draft_len_schedule
        if self.draft_len is not None:
            check_integer("draft_len", self.draft_len, low=0)
        if not isinstance(schedule, DraftLenSchedule | None):
            raise UsageError(
                f"draft_len_schedule is {schedule!r}, expected a mapping {{batch size: draft_len}}."
            )
        if self.draft_len is not None and schedule is not None:
            raise UsageError(
                "draft_len and draft_len_schedule are both given. Give one of them."
            )

    def _check_stop_tokens(self) -> None:
        tokens = self.stop_token_ids
        if not isinstance(tokens, tuple | None):
            raise UsageError(
                f"stop_token_ids is {tokens!r}, expected a list of token ids or None."
            )
        for token in tokens or ():
            check_integer("stop_token_ids", token, low=0)

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> SamplingParams:
        """Build from keyword arguments; lists become tuples.

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
                    f"unknown sampling option {name!r}. The options are: {', '.join(known)}."
                )
        return cls(**{name: _frozen(value) for name, value in options.items()})

    def seed_of(self, index: int, num_prompts: int) -> int:
        """Return the seed of prompt `index`.

        Raises:
            UsageError: if there are several seeds, but not `num_prompts`.
        """
        if not isinstance(self.seed, tuple):
            return self.seed
        if len(self.seed) != num_prompts:
            raise UsageError(
                f"seed has {len(self.seed)} entries for {num_prompts} prompts. Give one integer, or"
                " one each."
            )
        return self.seed[index]


def _frozen(value: Any) -> Any:
    if isinstance(value, Mapping):
        return DraftLenSchedule.from_mapping(value)
    return tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else value
