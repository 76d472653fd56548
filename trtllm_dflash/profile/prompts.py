"""What the systems are asked: prompts with a kind, as token ids, of their own length or of one that
is wanted.
"""

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
    """One prompt as it was given: what it is counted under, and where it stands."""

    content: str | list[int]
    category: str = NO_CATEGORY
    where: str = ""


@dataclass(frozen=True)
class EncodedPrompt:
    """One prompt as the model sees it."""

    category: str
    token_ids: list[int]


def builtin_prompts() -> list[Prompt]:
    """The prompts of the package: 12 kinds, named as in SPEED-Bench and MT-Bench, the kinds
    alternating.
    """
    text = resources.files(__package__).joinpath(BUILTIN_FILE).read_text(encoding="utf-8")
    rows = enumerate(map(json.loads, text.splitlines()), start=1)
    return [
        Prompt(row["prompt"], row["category"], f"{BUILTIN_NAME}, line {number}")
        for number, row in rows
    ]


def limit_per_category(prompts: Sequence[Prompt], most: int | None) -> list[Prompt]:
    """The first `most` prompts of each kind, in the given order; None: all."""
    seen: Counter[str] = Counter()
    taken = []
    for prompt in prompts:
        seen[prompt.category] += 1
        taken += [prompt] if most is None or seen[prompt.category] <= most else []
    return taken


def encode(
    prompts: Sequence[Prompt], tokenizer: Tokenizer | None, *, chat: bool
) -> list[EncodedPrompt]:
    """Token ids, in the model's chat format where `chat`; text without a tokenizer raises
    UsageError.
    """
    questions = []
    for prompt in prompts:
        if not isinstance(prompt.content, str):
            token_ids = prompt.content
        elif tokenizer is None:
            raise UsageError(
                f"this engine has no {TOKENIZER_FILE}, so it cannot read text. Give --prompts with"
                ' token ids ({"prompt": [1, 2]}), or build it from a checkpoint with its'
                " tokenizer files."
            )
        else:
            token_ids = (
                tokenizer.encode_chat(prompt.content) if chat else tokenizer.encode(prompt.content)
            )
        questions.append(EncodedPrompt(prompt.category, list(token_ids)))
    return questions


def fit_length(questions: Sequence[EncodedPrompt], length: int | None) -> list[EncodedPrompt]:
    """The same questions with `length` tokens each: the end of a longer one, or other prompts
    before a shorter one.

    So every prompt ends as it was written, and its answer stays of its kind. None: as they are.
    """
    if length is None or not any(question.token_ids for question in questions):
        return list(questions)
    fitted = []
    for index, question in enumerate(questions):
        token_ids, before = question.token_ids, index
        while len(token_ids) < length:
            before -= 1
            token_ids = questions[before % len(questions)].token_ids + token_ids
        fitted.append(replace(question, token_ids=token_ids[-length:]))
    return fitted
