"""Calibration text: rows of a file, or of the set that comes with the package, as sequences of
token ids.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from trtllm_dflash.errors import UsageError
from trtllm_dflash.runtime.text.tokenizer import Tokenizer

BUILTIN_SET = "calibration.jsonl"
# Longer sequences end at a multiple of it: the CPU's matrix library keeps code of its own for every
# length it meets.
_GRAIN = 32


@dataclass(frozen=True)
class Sample:
    """One text and where it stands: a prompt (or its token ids), what answers it, or running text
    without a prompt.
    """

    prompt: str | tuple[int, ...] | None
    text: str
    where: str


def read_samples(path: Path | None) -> list[Sample]:
    """The rows of a file, in its order; of the package's own set if there is none.

    A file is read as JSON lines if its name ends in .jsonl or it begins with a brace, and as
    paragraphs that blank lines part otherwise. A row that cannot be used raises UsageError with its
    line.
    """
    if path is None:
        text = (resources.files("trtllm_dflash.quantize") / BUILTIN_SET).read_text(encoding="utf-8")
        return [_from_json(line, BUILTIN_SET) for line in text.splitlines()]
    text = _read(path)
    if path.suffix == ".jsonl" or text.lstrip().startswith("{"):
        lines = enumerate(text.splitlines(), start=1)
        samples = [
            _from_json(line, f"{path}, line {number}") for number, line in lines if line.strip()
        ]
    else:
        samples = [
            Sample(None, part.strip(), str(path))
            for part in re.split(r"\n\s*\n", text)
            if part.strip()
        ]
    if not samples:
        raise UsageError(
            f"--calib-file {path} is empty. Give text of the kind that the model will see: JSON"
            " lines with a prompt, or paragraphs."
        )
    return samples


def encode_samples(
    samples: Iterable[Sample],
    tokenizer: Tokenizer | None,
    *,
    vocab_size: int,
    seq_len: int,
    limit: int,
) -> list[list[int]]:
    """At most `limit` sequences of 1 to `seq_len` token ids; a prompt goes through the model's chat
    format, if any.

    The last tokens of a text are left out where that makes the length a multiple of 32.
    """
    sequences: list[list[int]] = []
    for sample in samples:
        ids = _encode(sample, tokenizer)
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


def _encode(sample: Sample, tokenizer: Tokenizer | None) -> list[int]:
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
        prompt = list(sample.prompt)
    else:
        prompt = (tokenizer.encode_chat if tokenizer.has_chat_template else tokenizer.encode)(
            sample.prompt
        )
    return prompt + (tokenizer.encode(sample.text, special_tokens=False) if sample.text else [])


def _pieces(ids: Sequence[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(ids), size):
        piece = list(ids[start : start + size])
        even = len(piece) // _GRAIN * _GRAIN
        yield piece[:even] if even and len(piece) < size else piece


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"--calib-file {path}: cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"--calib-file {path}: byte {error.start} is not UTF-8. Save the file as UTF-8."
        ) from error


def _from_json(line: str, where: str) -> Sample:
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{where}: not JSON ({error}). A file of JSON lines has one object on every line."
        ) from error
    row = row if isinstance(row, dict) else {}
    prompt, text = row.get("prompt"), row.get("text")
    if isinstance(prompt, list) and prompt and all(type(token) is int for token in prompt):
        prompt = tuple(prompt)
    usable = prompt is None or (isinstance(prompt, str | tuple) and prompt)
    if not usable or not isinstance(text, str | None) or (prompt is None and not text):
        raise UsageError(
            f'{where}: expected {{"prompt": a string or token ids}}, {{"text": a string}} or both, '
            f"got {line.strip()[:60]}"
        )
    return Sample(prompt, text or "", where)
