"""What may be given as prompts: text, token ids in many containers, what tokenizers return."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from numbers import Number
from typing import Any, TypeAlias

from trtllm_dflash.engine_dir.files import TOKENIZER_FILE
from trtllm_dflash.errors import UsageError
from trtllm_dflash.options.checks import NOT_SEQUENCES, as_list, plain, shown
from trtllm_dflash.runtime.sessions.base import Int64
from trtllm_dflash.runtime.text.tokenizer import Tokenizer

InputIds: TypeAlias = "Iterable[int] | Int64"
Prompt: TypeAlias = "str | InputIds | Mapping[str, Any]"

MAX_PROMPTS = 2**20
MAX_READ_TOKENS = 2**22  # of a prompt whose length nobody knows
EXPECTED_PROMPT = "a string or a list of token ids"
_EXPECTED_PROMPTS = "a list of strings or of token-id lists"
_BYTES = (bytes, bytearray, memoryview)


class PromptError(UsageError):
    """A prompt that this engine cannot take.

    `index` is its number, `problem` the rest of a sentence that begins with "prompt <index>".
    """

    def __init__(self, index: int, problem: str) -> None:
        super().__init__(f"prompt {index} {problem}")
        self.index = index
        self.problem = problem


def as_prompts(prompts: Prompt | Iterable[Prompt]) -> list[Prompt]:
    """Return a list of texts and token-id lists; one of them alone is one prompt.

    What a tokenizer of Hugging Face returns, a mapping with `input_ids`, stands for those ids.

    Raises:
        UsageError: for other containers, which might hold anything.
    """
    if isinstance(prompts, str):
        return [prompts]
    if isinstance(prompts, Mapping):
        return _from_mapping(prompts)
    if isinstance(prompts, _BYTES):
        raise UsageError(f"prompts is {shown(prompts)}: decode the bytes first.")
    items = as_list("prompts", prompts, expected=_EXPECTED_PROMPTS, limit=MAX_READ_TOKENS)
    if items and isinstance(plain(items[0]), Number):
        return [items]
    if len(items) > MAX_PROMPTS:
        raise UsageError(f"prompts holds more than {MAX_PROMPTS} prompts. Give fewer.")
    return [_prompt(item, index) for index, item in enumerate(items)]


def tokenize_prompt(prompt: Prompt, tokenizer: Tokenizer | None) -> InputIds:
    """Return a prompt's token ids; text without a tokenizer raises UsageError."""
    if isinstance(prompt, Mapping):
        (prompt,) = as_prompts([prompt])
    if not isinstance(prompt, str):
        assert not isinstance(prompt, Mapping)
        return prompt
    if tokenizer is None:
        raise UsageError(
            f"a prompt is text, and this engine has no {TOKENIZER_FILE}. Give lists of token ids,"
            " or build the engine from a checkpoint with its tokenizer files."
        )
    return tokenizer.encode(prompt)


def read_tokens(prompt: InputIds, index: int) -> list[Any]:
    """Return the entries of a token-id sequence, which are not checked.

    Raises:
        PromptError: for what is no such sequence.
    """
    if isinstance(prompt, _BYTES):
        raise PromptError(index, f"is {shown(prompt)}: decode the bytes first.")
    if isinstance(prompt, NOT_SEQUENCES):
        raise PromptError(index, f"is {shown(prompt)}, expected {EXPECTED_PROMPT}.")
    try:
        tokens = as_list("it", prompt, expected=EXPECTED_PROMPT, limit=MAX_READ_TOKENS)
    except UsageError as error:
        problem = str(error).removeprefix("it ")
        raise PromptError(index, problem) from error
    return [token if type(token) is int else plain(token) for token in tokens]


def _prompt(item: Any, index: int) -> Prompt:
    """Return a prompt of a list; what a tokenizer returned becomes its ids."""
    if not isinstance(item, Mapping):
        return item  # type: ignore[no-any-return]
    try:
        prompts = _from_mapping(item)
    except UsageError as error:
        problem = str(error).removeprefix("prompts ")
        raise PromptError(index, problem) from error
    if len(prompts) != 1:
        raise PromptError(index, f"holds {len(prompts)} sequences of input_ids, expected one.")
    return prompts[0]


def _from_mapping(mapping: Mapping[Any, Any]) -> list[Prompt]:
    """Return the sequences of `input_ids`, without what `attention_mask` marks as padding."""
    if "input_ids" not in mapping:
        advice = "as a tokenizer returns them"
        if "role" in mapping or "messages" in mapping:
            advice = "or call engine.chat with the list of messages"
        keys = ", ".join(shown(key) for key in list(mapping)[:5])
        raise UsageError(
            f"prompts is a mapping with the keys {keys}, expected {_EXPECTED_PROMPTS}, or"
            f" input_ids, {advice}."
        )
    rows = _rows("input_ids", mapping["input_ids"])
    mask = mapping.get("attention_mask")
    if mask is None:
        return list(rows)
    masks = _rows("attention_mask", mask)
    if list(map(len, masks)) != list(map(len, rows)):
        raise UsageError("prompts has an attention_mask of another shape than its input_ids.")
    return [_unpadded(row, of_row) for row, of_row in zip(rows, masks, strict=True)]


def _rows(name: str, value: Any) -> list[list[Any]]:
    """Return a batch of sequences; one sequence is a batch of one."""
    expected = "one list of integers, or a list of them"
    items = as_list(name, value, expected=expected, limit=MAX_READ_TOKENS)
    if items and isinstance(plain(items[0]), Number):
        return [items]
    return [as_list(name, item, expected=expected, limit=MAX_READ_TOKENS) for item in items]


def _unpadded(tokens: list[Any], mask: list[Any]) -> list[Any]:
    """Return the tokens whose mask is 1; zeros may stand at the ends only."""
    flags = [plain(flag) for flag in mask]
    ones = [place for place, flag in enumerate(flags) if flag == 1]
    begin, end = (ones[0], ones[-1] + 1) if ones else (0, 0)
    if any(flag not in (0, 1) for flag in flags) or len(ones) != end - begin:
        raise UsageError(
            "prompts has an attention_mask that is not ones with zeros before or behind them, as"
            " padding has it."
        )
    return tokens[begin:end]
