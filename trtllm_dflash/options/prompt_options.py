"""Where the prompts of a command come from, how they are put, and where its results go."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trtllm_dflash.errors import UsageError
from trtllm_dflash.options.checks import parse_json_object, typed_text
from trtllm_dflash.options.fields import cli_option, option_name


@dataclass(frozen=True, kw_only=True)
class ChatOptions:
    """Conversations, and how they are put into the model's chat format.

    Raises:
        UsageError: for template options that are no JSON object.
    """

    messages: Path | None = field(
        default=None,
        metadata=cli_option(
            'file of conversations: a JSON list of messages with "role" and "content", or one such'
            " list a line; -: stdin",
            metavar="FILE",
        ),
    )
    system: str | None = field(
        default=None,
        metadata=cli_option(
            "system message of every conversation that has none of its own",
            metavar="TEXT",
            parse=typed_text,
        ),
    )
    chat_template_kwargs: str | None = field(
        default=None,
        metadata=cli_option(
            'options of the chat template, as {"enable_thinking": false}'
            " [default: the engine's own; for quantize none]",
            metavar="JSON",
            parse=typed_text,
        ),
    )

    def __post_init__(self) -> None:
        """Check the template options."""
        _ = self.template_options

    @property
    def template_options(self) -> dict[str, Any]:
        """Return the template options that are given."""
        if self.chat_template_kwargs is None:
            return {}
        return parse_json_object("--chat-template-kwargs", self.chat_template_kwargs)

    @property
    def given_chat_options(self) -> list[str]:
        """Return those options that only a chat format can follow, as they are typed."""
        names = ("messages", "system", "chat_template_kwargs")
        return [option_name(name) for name in names if getattr(self, name) is not None]


@dataclass(frozen=True, kw_only=True)
class PromptOptions(ChatOptions):
    """The file of the prompts, and how they are encoded.

    Raises:
        UsageError: for options that contradict each other.
    """

    prompts: Path | None = field(
        default=None,
        metadata=cli_option(
            'file of prompts: one a line, or JSON lines with "prompt" or "messages" (and'
            ' "category"); -: stdin',
            metavar="FILE",
            aliases=("--input-file",),
        ),
    )
    raw: bool = field(
        default=False,
        metadata=cli_option("give prompts to the model as they are, without its chat template"),
    )

    def __post_init__(self) -> None:
        """Check everything that can be judged without the engine."""
        super().__post_init__()
        if self.raw and self.given_chat_options:
            raise UsageError(
                f"{self.given_chat_options[0]} is for the chat format, and --raw leaves it out."
                " Give one of the two."
            )
        if self.prompts is not None and self.messages is not None:
            raise UsageError("give either --prompts or --messages, not both.")

    @property
    def input_files(self) -> dict[str, Path | None]:
        """Return the files that are read, by the options that name them."""
        return {"--prompts": self.prompts, "--messages": self.messages}

    @property
    def source(self) -> Path | None:
        """Return the file of prompts or of conversations."""
        return self.prompts or self.messages


@dataclass(frozen=True)
class ResultFile:
    """The file of a command's results."""

    json: Path | None = field(
        default=None, metadata=cli_option("write all results there as JSON", metavar="FILE")
    )
