"""Prompts by category, as token ids, of their own length or of a given one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from typing import cast

from trtllm_dflash.engine_dir.files import TOKENIZER_FILE
from trtllm_dflash.errors import UsageError
from trtllm_dflash.runtime.text.chat_format import ChatFormat, PromptContent, is_token_ids
from trtllm_dflash.runtime.text.tokenizer import Tokenizer

BUILTIN_NAME = "the prompts that come with dflash-trt"
BUILTIN_FILE = "prompts.jsonl"
NO_CATEGORY = "other"


@dataclass(frozen=True)
class Prompt:
    """One prompt as it was given; `where` is its file and line."""

    content: PromptContent
    category: str = NO_CATEGORY
    where: str = ""


@dataclass(frozen=True)
class PromptSet:
    """The prompts of a profile, and how they are put."""

    name: str
    prompts: tuple[Prompt, ...]
    chat_format: ChatFormat = field(default_factory=ChatFormat)

    @classmethod
    def builtin(cls, chat_format: ChatFormat | None = None) -> PromptSet:
        """Return the prompts that come with the package."""
        return cls(BUILTIN_NAME, tuple(builtin_prompts()), chat_format or ChatFormat())


@dataclass(frozen=True)
class EncodedPrompt:
    """One prompt as the model sees it."""

    category: str
    input_ids: list[int]


def builtin_prompts() -> list[Prompt]:
    """Return the package's prompts: 12 categories in turn, named as in SPEED-Bench and MT-Bench."""
    text = resources.files(__package__).joinpath(BUILTIN_FILE).read_text(encoding="utf-8")
    prompts = []
    for number, line in enumerate(text.splitlines(), start=1):
        row = json.loads(line)
        where = f"{BUILTIN_NAME}, line {number}"
        prompts.append(Prompt(row["prompt"], row["category"], where))
    return prompts


def limit_per_category(prompts: Sequence[Prompt], limit: int | None) -> list[Prompt]:
    """Return the first `limit` prompts of each category, in the given order; None: all."""
    if limit is None:
        return list(prompts)
    seen: Counter[str] = Counter()
    taken = []
    for prompt in prompts:
        seen[prompt.category] += 1
        if seen[prompt.category] <= limit:
            taken.append(prompt)
    return taken


def encode(
    prompts: Sequence[Prompt], tokenizer: Tokenizer | None, chat_format: ChatFormat
) -> list[EncodedPrompt]:
    """Return the prompts' token ids.

    Raises:
        UsageError: for text without a tokenizer, or messages that the template does not take; it
            names the prompt's place.
    """
    encoded = []
    for prompt in prompts:
        try:
            input_ids = _encode_one(prompt.content, tokenizer, chat_format)
        except UsageError as error:
            if not prompt.where:
                raise
            raise UsageError(f"{prompt.where}: {error}") from error
        encoded.append(EncodedPrompt(prompt.category, input_ids))
    return encoded


def _encode_one(
    content: PromptContent, tokenizer: Tokenizer | None, chat_format: ChatFormat
) -> list[int]:
    """Return the token ids of one prompt."""
    if tokenizer is not None:
        return chat_format.encode(content, tokenizer)
    if is_token_ids(content):
        return list(cast("Sequence[int]", content))
    raise UsageError(
        f"this engine has no {TOKENIZER_FILE}, so it cannot read text. Give --prompts with"
        ' token ids ({"prompt": [1, 2]}), or build it from a checkpoint with its'
        " tokenizer files."
    )


def fit_length(prompts: Sequence[EncodedPrompt], length: int | None) -> list[EncodedPrompt]:
    """Return the same prompts with `length` tokens each; None: as they are.

    A longer prompt keeps its end. A shorter one gets other prompts before it. So every prompt ends
    as it was written, and its answer stays of its category.
    """
    if length is None or not any(prompt.input_ids for prompt in prompts):
        return list(prompts)
    fitted = []
    for index, prompt in enumerate(prompts):
        input_ids = prompt.input_ids
        before = index
        while len(input_ids) < length:
            before -= 1
            input_ids = prompts[before % len(prompts)].input_ids + input_ids
        fitted.append(replace(prompt, input_ids=input_ids[-length:]))
    return fitted
