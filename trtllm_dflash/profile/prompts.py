"""Prompts by category, as token ids, of their own length or of a given one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources

from trtllm_dflash.engine_dir.files import TOKENIZER_FILE
from trtllm_dflash.errors import UsageError
from trtllm_dflash.runtime.text.tokenizer import Tokenizer

BUILTIN_NAME = "the prompts that come with dflash-trt"
BUILTIN_FILE = "prompts.jsonl"
NO_CATEGORY = "other"


@dataclass(frozen=True)
class Prompt:
    """One prompt as it was given; `where` is its file and line."""

    content: str | list[int]
    category: str = NO_CATEGORY
    where: str = ""


@dataclass(frozen=True)
class PromptSet:
    """The prompts of a profile; `chat`: texts go into the model's chat format."""

    name: str
    prompts: tuple[Prompt, ...]
    chat: bool = True

    @classmethod
    def builtin(cls, *, chat: bool = True) -> PromptSet:
        """Return the prompts that come with the package."""
        return cls(BUILTIN_NAME, tuple(builtin_prompts()), chat)


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
    prompts: Sequence[Prompt], tokenizer: Tokenizer | None, *, chat: bool
) -> list[EncodedPrompt]:
    """Return the prompts' token ids; `chat`: in the model's chat format.

    Raises:
        UsageError: for text without a tokenizer.
    """
    return [
        EncodedPrompt(prompt.category, _encode_one(prompt.content, tokenizer, chat))
        for prompt in prompts
    ]


def _encode_one(content: str | list[int], tokenizer: Tokenizer | None, chat: bool) -> list[int]:
    """Return the token ids of one prompt."""
    if not isinstance(content, str):
        return list(content)
    if tokenizer is None:
        raise UsageError(
            f"this engine has no {TOKENIZER_FILE}, so it cannot read text. Give --prompts with"
            ' token ids ({"prompt": [1, 2]}), or build it from a checkpoint with its'
            " tokenizer files."
        )
    return tokenizer.encode_chat(content) if chat else tokenizer.encode(content)


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
