"""Where the prompts of a command come from, and where its results go."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from trtllm_dflash.options.fields import cli_option


@dataclass(frozen=True)
class PromptOptions:
    """The file of the prompts, and how they are encoded."""

    prompts: Path | None = field(
        default=None,
        metadata=cli_option(
            'file of prompts: one a line, or JSON lines with "prompt" (and "category"); -: stdin',
            metavar="FILE",
            aliases=("--input-file",),
        ),
    )
    raw: bool = field(
        default=False,
        metadata=cli_option("give prompts to the model as they are, without its chat template"),
    )


@dataclass(frozen=True)
class ResultFile:
    """The file of a command's results."""

    json: Path | None = field(
        default=None, metadata=cli_option("write all results there as JSON", metavar="FILE")
    )
