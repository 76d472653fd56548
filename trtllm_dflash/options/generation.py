"""The options of `dflash-trt run`, but for those of SamplingParams."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trtllm_dflash.errors import UsageError
from trtllm_dflash.options.draft_len import check_draft_len, parse_draft_len
from trtllm_dflash.options.draft_len_schedule import DraftLenSchedule
from trtllm_dflash.options.fields import check_fields, cli_option
from trtllm_dflash.options.prompt_options import PromptOptions
from trtllm_dflash.options.sampling import SamplingParams
from trtllm_dflash.options.shared import (
    DEFAULT_PREFIX_CACHE_MIB,
    NUM_THREADS,
    PREFIX_CACHE_MIB,
)


@dataclass(frozen=True, kw_only=True)
class RunConfig(PromptOptions):
    """What to generate with an engine, and where the answers go.

    Without prompt, prompts and messages there is a conversation on the terminal.

    Raises:
        UsageError: for options that contradict each other.
    """

    engine: Path
    prompt: str | None = None
    max_tokens: int = field(
        default=SamplingParams.max_tokens,
        metadata=cli_option(
            "new tokens for each prompt, at most; a conversation has no limit by default", low=1
        ),
    )
    no_draft: bool = field(
        default=False,
        metadata=cli_option("verify no drafts: plain decoding, the same tokens"),
    )
    draft_len: int | str | None = field(
        default=None,
        metadata=cli_option(
            "drafts verified in a step; auto: as many as pay [default: the engine's own]",
            metavar="INTEGER|auto",
            parse=parse_draft_len,
        ),
    )
    draft_len_schedule: Path | None = field(
        default=None,
        metadata=cli_option(
            "drafts by batch size, as `profile` recommends them: JSON such as"
            ' {"1": 7, "4": 3}; no drafts beyond the last size',
            metavar="FILE",
        ),
    )
    special_tokens: bool = field(
        default=False, metadata=cli_option("show the special tokens in the text")
    )
    show_reasoning: bool = field(
        default=False,
        metadata=cli_option(
            "show what the model writes before its final answer, where its format tells the two"
            " apart"
        ),
    )
    output: Path | None = field(
        default=None,
        metadata=cli_option(
            "write the answers there as JSON lines, not to the terminal", metavar="FILE"
        ),
    )
    num_threads: int | None = field(default=None, metadata=NUM_THREADS)
    prefix_cache_mib: int = field(default=DEFAULT_PREFIX_CACHE_MIB, metadata=PREFIX_CACHE_MIB)

    def __post_init__(self) -> None:
        """Check everything that can be judged without the engine."""
        super().__post_init__()
        check_fields(self)
        check_draft_len(self.draft_len)
        if self.prompt is not None and self.source is not None:
            other = "--messages" if self.prompts is None else "--prompts"
            raise UsageError(f"give either a PROMPT or {other} FILE, not both.")
        given = {
            "--no-draft": self.no_draft,
            "--draft-len": self.draft_len is not None,
            "--draft-len-schedule": self.draft_len_schedule is not None,
        }
        names = [name for name, is_given in given.items() if is_given]
        if len(names) > 1:
            raise UsageError(f"give either {names[0]} or {names[1]}, not both.")

    def sampling_options(self) -> dict[str, Any]:
        """Return these options as keyword arguments of `Engine.stream`; reads the schedule."""
        options: dict[str, Any] = {
            "max_tokens": self.max_tokens,
            "draft": not self.no_draft,
            "draft_len": self.draft_len,
            "skip_special_tokens": not self.special_tokens,
        }
        if self.draft_len_schedule is not None:
            options["draft_len_schedule"] = DraftLenSchedule.load(self.draft_len_schedule)
        return options
