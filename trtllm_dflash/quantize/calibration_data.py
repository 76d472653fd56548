"""Calibration text as sequences of token ids, from a file or from the package's own set."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from trtllm_dflash.errors import UsageError
from trtllm_dflash.runtime.text.chat_format import ChatFormat, Conversation
from trtllm_dflash.runtime.text.prompt_files import (
    parse_json_line,
    read_conversations,
    utf8_text,
)
from trtllm_dflash.runtime.text.tokenizer import Tokenizer

BUILTIN_SET = "calibration.jsonl"
# Longer sequences end at a multiple of this. The CPU's matrix library keeps code for every length.
_LENGTH_MULTIPLE = 32


@dataclass(frozen=True)
class Sample:
    """One text: a prompt, its answer, or both; or text without a prompt.

    The prompt is a text, token ids, or a conversation.

    `where` is its file and line.
    """

    prompt: str | tuple[int, ...] | Conversation | None
    text: str
    where: str


def read_samples(path: Path | None) -> list[Sample]:
    """Return the samples of a file, in its order; None: of the package's own set.

    A file is read as JSON lines if its name ends in .jsonl or it begins with a brace. Otherwise it
    is read as paragraphs, with blank lines between them.

    Raises:
        UsageError: for a row that cannot be used, with its line.
    """
    if path is None:
        text = (resources.files("trtllm_dflash.quantize") / BUILTIN_SET).read_text(
            encoding="utf-8"
        )
        return [_from_json(line, BUILTIN_SET) for line in text.splitlines()]
    text = _read(path)
    if path.suffix == ".jsonl" or text.lstrip().startswith("{"):
        samples = _read_json_lines(text, path)
    else:
        parts = [part.strip() for part in re.split(r"\n\s*\n", text)]
        samples = [Sample(None, part, str(path)) for part in parts if part]
    if not samples:
        raise UsageError(
            f"--calib-file {path} is empty. Give text of the kind that the model will see: JSON"
            " lines with a prompt, or paragraphs."
        )
    return samples


def read_conversation_samples(path: Path) -> list[Sample]:
    """Return a sample for each conversation of a file; a last message of the assistant is text.

    Raises:
        UsageError: for what is no conversation, with its line.
    """
    samples = []
    for line in read_conversations(path):
        messages: Any = line.prompt
        text = ""
        last = messages[-1]
        is_answer = last["role"] == "assistant" and isinstance(last.get("content"), str)
        if is_answer and len(messages) > 1:
            messages, text = messages[:-1], last["content"]
        samples.append(Sample(messages, text, line.where))
    return samples


def _read_json_lines(text: str, path: Path) -> list[Sample]:
    """Return the samples of a file of JSON lines."""
    samples = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            samples.append(_from_json(line, f"{path}, line {number}"))
    return samples


def encode_samples(
    samples: Iterable[Sample],
    tokenizer: Tokenizer | None,
    chat_format: ChatFormat,
    *,
    vocab_size: int,
    seq_len: int,
    limit: int,
) -> list[list[int]]:
    """Return at most `limit` sequences of 1 to `seq_len` token ids.

    Prompts go into the model's chat format, if it has one. The last tokens of a text are left out
    where that makes the length a multiple of 32.

    Raises:
        UsageError: for text without a tokenizer, or ids outside the vocabulary.
    """
    sequences: list[list[int]] = []
    for sample in samples:
        ids = _encode(sample, tokenizer, chat_format)
        wrong = [token for token in ids if not 0 <= token < vocab_size]
        if wrong:
            raise UsageError(
                f"{sample.where}: token {wrong[0]} is outside the target's vocabulary of"
                f" {vocab_size}."
            )
        sequences += _pieces(ids, seq_len)
        if len(sequences) >= limit:
            break
    return sequences[:limit]


def _encode(sample: Sample, tokenizer: Tokenizer | None, chat_format: ChatFormat) -> list[int]:
    """Return the token ids of a sample."""
    if isinstance(sample.prompt, tuple) and not sample.text:
        return list(sample.prompt)
    if tokenizer is None:
        raise UsageError(
            f"{sample.where}: the target has no tokenizer.json, so text cannot calibrate it. Put"
            ' the file into its directory, or give --calib-file with token ids: {"prompt": [1, 2,'
            " 3]}."
        )
    if sample.prompt is None:
        return tokenizer.encode(sample.text)
    if isinstance(sample.prompt, tuple):
        ids = list(sample.prompt)
    else:
        asks_for_format = chat_format.system is not None or chat_format.template_options
        has_format = tokenizer.has_chat_template or asks_for_format
        is_plain = isinstance(sample.prompt, str) and not has_format
        put = replace(chat_format, chat=not is_plain)
        ids = _put(sample, put, tokenizer)
    if sample.text:
        ids += tokenizer.encode(sample.text, special_tokens=False)
    return ids


def _put(sample: Sample, chat_format: ChatFormat, tokenizer: Tokenizer) -> list[int]:
    """Return the token ids of a prompt that is a text or a conversation."""
    assert isinstance(sample.prompt, str | list)
    try:
        return chat_format.encode(sample.prompt, tokenizer)
    except UsageError as error:
        raise UsageError(f"{sample.where}: {error}") from error


def _pieces(ids: Sequence[int], size: int) -> Iterator[list[int]]:
    """Yield pieces of at most `size` ids, rounded down where shorter."""
    for start in range(0, len(ids), size):
        piece = list(ids[start : start + size])
        rounded = len(piece) // _LENGTH_MULTIPLE * _LENGTH_MULTIPLE
        yield piece[:rounded] if rounded and len(piece) < size else piece


def _read(path: Path) -> str:
    """Return the text of a file, or raise UsageError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"--calib-file {path}: cannot be read ({error.strerror}).") from error
    return utf8_text(data, f"--calib-file {path}").removeprefix("\N{BYTE ORDER MARK}")


def _from_json(line: str, where: str) -> Sample:
    """Return the sample of one JSON line, or raise UsageError."""
    row = parse_json_line(line, where)
    row = row if isinstance(row, dict) else {}
    prompt = row.get("prompt")
    text = row.get("text")
    if isinstance(prompt, list) and prompt and all(type(token) is int for token in prompt):
        prompt = tuple(prompt)
    usable = prompt is None or (isinstance(prompt, str | tuple) and prompt)
    if not usable or not isinstance(text, str | None) or (prompt is None and not text):
        raise UsageError(
            f'{where}: expected {{"prompt": a string or token ids}}, {{"text": a string}} or both, '
            f"got {line.strip()[:60]}"
        )
    return Sample(prompt, text or "", where)
