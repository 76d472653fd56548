"""Files of prompts (one a line, or JSON lines with a "prompt") and files of answers."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtllm_dflash.errors import UsageError
from trtllm_dflash.log import human_bytes
from trtllm_dflash.runtime.outputs import Generation

MAX_FILE_BYTES = 1_000_000_000
_SHOWN = 60  # characters of a bad line in a message


@dataclass(frozen=True)
class PromptLine:
    """One prompt, as a text or as token ids."""

    prompt: str | list[int]
    where: str = ""  # "FILE, line N"
    category: str = ""


def read_prompts(path: Path) -> list[PromptLine]:
    """Read the prompts of a file, or of stdin for "-"; blank lines are skipped.

    A file is read as JSON lines if its name ends in .jsonl or its first line begins with a brace.
    Their keys are "prompt" (a string or a list of token ids) and "category" (a string, once called
    "kind"). Others are ignored.

    Raises:
        UsageError: for a line that cannot be used, with its number.
    """
    name = "stdin" if str(path) == "-" else str(path)
    places = {}
    for number, line in enumerate(_lines(path, name), start=1):
        if line.strip():
            places[f"{name}, line {number}"] = line
    if not places:
        raise UsageError(
            f"{name}: there is no prompt in it. Write one a line, or one JSON object with a prompt"
            " a line."
        )
    first = next(iter(places.values()))
    if path.suffix == ".jsonl" or first.lstrip().startswith("{"):
        return [_from_json(line, where) for where, line in places.items()]
    return [PromptLine(line, where) for where, line in places.items()]


def _lines(path: Path, name: str) -> list[str]:
    data = read_bounded(path, name)
    lines = data.removeprefix(b"\xef\xbb\xbf").splitlines()
    return [_text(line, f"{name}, line {number}") for number, line in enumerate(lines, start=1)]


def read_bounded(path: Path, name: str) -> bytes:
    """Return the bytes of a file, or of stdin for "-".

    Raises:
        UsageError: if it cannot be read, or has more than MAX_FILE_BYTES.
    """
    try:
        if str(path) == "-":
            data = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
        else:
            with path.open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(
            f"{name}: cannot be read ({reason}). Give a file of prompts, or - for stdin."
        ) from error
    if len(data) > MAX_FILE_BYTES:
        raise UsageError(
            f"{name}: more than {human_bytes(MAX_FILE_BYTES)}. Split it, and run it in parts."
        )
    return data


def _text(line: bytes, where: str) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{where}: byte {error.start} is not UTF-8. Save the file as UTF-8."
        ) from error


def _from_json(line: str, where: str) -> PromptLine:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{where}: not JSON ({error}). A file of JSON lines has one object on every line."
        ) from error
    if not isinstance(row, dict) or "prompt" not in row:
        raise UsageError(
            f'{where}: expected a JSON object with the key "prompt", got {line.strip()[:_SHOWN]}'
        )
    prompt = row["prompt"]
    if not isinstance(prompt, str | list):
        raise UsageError(
            f'{where}: "prompt" is {json.dumps(prompt)[:_SHOWN]}, expected a string or a list of'
            " token ids."
        )
    category = row.get("category", row.get("kind", ""))
    return PromptLine(prompt, where, category if isinstance(category, str) else "")


def answer_row(index: int, line: PromptLine, answer: Generation) -> dict[str, Any]:
    """Return the JSON object of one answer."""
    return {
        "index": index,
        "prompt": line.prompt,
        "text": answer.text,
        "token_ids": answer.token_ids,
        "acceptance_lengths": answer.acceptance_lengths,
        "finish_reason": answer.finish_reason,
        "prefill_seconds": round(answer.prefill_seconds, 6),
        "decode_seconds": round(answer.decode_seconds, 6),
    }
