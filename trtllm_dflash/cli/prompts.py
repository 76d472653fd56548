"""What a command is asked: from files, from stdin; and the rows of its answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trtllm_dflash.errors import UsageError
from trtllm_dflash.options.prompt_options import PromptOptions
from trtllm_dflash.runtime.outputs import Generation
from trtllm_dflash.runtime.text.prompt_files import (
    PromptLine,
    read_bounded,
    read_conversations,
    read_prompts,
    utf8_text,
)

MAX_STDIN_PROMPT_BYTES = 16_000_000


def read_source(options: PromptOptions) -> list[PromptLine]:
    """Read the prompts of --prompts, or the conversations of --messages; [] without both."""
    if options.prompts is not None:
        return read_prompts(options.prompts)
    return read_conversations(options.messages) if options.messages is not None else []


def read_stdin() -> str:
    """Return all of stdin as one prompt, without the line break at its end.

    Raises:
        UsageError: if it is empty, too long or not UTF-8.
    """
    data = read_bounded(Path("-"), "stdin", MAX_STDIN_PROMPT_BYTES)
    text = utf8_text(data.removeprefix(b"\xef\xbb\xbf"), "stdin").removesuffix("\n")
    text = text.removesuffix("\r")
    if not text.strip():
        raise UsageError(
            "stdin is empty. Give a PROMPT, --prompts FILE or --messages FILE, or write a prompt to"
            " stdin."
        )
    return text


def answer_row(index: int, line: PromptLine, answer: Generation) -> dict[str, Any]:
    """Return the JSON object of one answer; `index` is its prompt's."""
    logprobs = answer.logprobs
    return {
        "index": index,
        "sample_index": answer.sample_index,
        "prompt": line.prompt,
        "text": answer.text,
        "reasoning": answer.reasoning,
        "token_ids": answer.token_ids,
        "logprobs": None if logprobs is None else [one._asdict() for one in logprobs],
        "acceptance_lengths": answer.acceptance_lengths,
        "drafts_by_source": {
            source: count._asdict() for source, count in answer.drafts_by_source.items()
        },
        "finish_reason": answer.finish_reason,
        "seed": answer.seed,
        "prefill_seconds": round(answer.prefill_seconds, 6),
        "decode_seconds": round(answer.decode_seconds, 6),
    }
