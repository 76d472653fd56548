"""Files of prompts and of conversations: lines of text, JSON, or JSON lines."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtllm_dflash.errors import UsageError
from trtllm_dflash.log import human_bytes
from trtllm_dflash.options.checks import shown
from trtllm_dflash.runtime.text.chat_format import PromptContent

MAX_FILE_BYTES = 1_000_000_000
_SHOWN = 60  # characters of a bad line in a message
_CONVERSATION = 'Write a JSON list of messages, as [{"role": "user", "content": "Hello"}].'


@dataclass(frozen=True)
class PromptLine:
    """One prompt: a text, token ids, or a conversation."""

    prompt: PromptContent
    where: str = ""  # "FILE, line N"
    category: str = ""


def read_prompts(path: Path) -> list[PromptLine]:
    """Read the prompts of a file, or of stdin for "-"; blank lines are skipped.

    A file is read as JSON lines if its name ends in .jsonl or its first line begins with a brace.
    Their keys are "prompt" (a string or a list of token ids) or "messages" (a conversation), and
    "category" (a string, once called "kind"). Others are ignored.

    Raises:
        UsageError: for a line that cannot be used, with its number.
    """
    name = _name_of(path)
    places = _lines(read_bounded(path, name), name)
    if not places:
        raise UsageError(
            f"{name}: there is no prompt in it. Write one a line, or one JSON object with a prompt"
            " a line."
        )
    first = next(iter(places.values()))
    if path.suffix == ".jsonl" or first.lstrip().startswith("{"):
        return [_from_json(line, where) for where, line in places.items()]
    return [PromptLine(line, where) for where, line in places.items()]


def read_conversations(path: Path) -> list[PromptLine]:
    """Read the conversations of a file, or of stdin for "-".

    The file is one JSON list of messages, or an object that has them as "messages". Or each line is
    one of the two.

    Raises:
        UsageError: for what is no conversation, with its line.
    """
    name = _name_of(path)
    data = read_bounded(path, name)
    lines = _lines(data, name)
    if len(lines) > 1 and path.suffix != ".jsonl":
        # If it is not one JSON text, it is JSON lines, whose errors name their line.
        with suppress(ValueError, RecursionError):
            lines = {name: json.dumps(json.loads(utf8_text(data, name)))}
    if not lines:
        raise UsageError(f"{name}: there is no conversation in it. {_CONVERSATION}")
    return [_conversation(line, where) for where, line in lines.items()]


def _conversation(line: str, where: str) -> PromptLine:
    row = parse_json_line(line, where)
    messages = row.get("messages") if isinstance(row, dict) else row
    if not isinstance(messages, list) or not messages:
        raise UsageError(
            f"{where}: expected a list of messages, got {line.strip()[:_SHOWN]}. {_CONVERSATION}"
        )
    _check_messages(messages, where)
    return PromptLine(messages, where, _category(row) if isinstance(row, dict) else "")


def _check_messages(messages: list[Any], where: str) -> None:
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise UsageError(
                f'{where}: message {number} is {shown(message)}, expected an object with "role" and'
                ' "content".'
            )


def _name_of(path: Path) -> str:
    return "stdin" if str(path) == "-" else str(path)


def _lines(data: bytes, name: str) -> dict[str, str]:
    """Return the lines that are not blank, by their places."""
    places = {}
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").splitlines(), start=1):
        where = f"{name}, line {number}"
        text = utf8_text(line, where)
        if text.strip():
            places[where] = text
    return places


def read_bounded(path: Path, name: str, limit: int = MAX_FILE_BYTES) -> bytes:
    """Return the bytes of a file, or of stdin for "-".

    Raises:
        UsageError: if it cannot be read, or has more than `limit` bytes.
    """
    try:
        if str(path) == "-":
            data = sys.stdin.buffer.read(limit + 1) if sys.stdin is not None else b""
        else:
            with path.open("rb") as file:
                data = file.read(limit + 1)
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(
            f"{name}: cannot be read ({reason}). Give a file of prompts, or - for stdin."
        ) from error
    if len(data) > limit:
        raise UsageError(
            f"{name}: more than {human_bytes(limit)}. Split it, and run it in parts."
        )
    return data


def utf8_text(line: bytes, where: str) -> str:
    """Return a line of a file as text, or raise UsageError."""
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{where}: byte {error.start} is not UTF-8. Save the file as UTF-8."
        ) from error


def parse_json_line(line: str, where: str) -> Any:
    """Return what a line of JSON holds, or raise UsageError."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{where}: not JSON ({error}). A file of JSON lines has one object on every line."
        ) from error


def _from_json(line: str, where: str) -> PromptLine:
    row = parse_json_line(line, where)
    if isinstance(row, dict) and "messages" in row and "prompt" not in row:
        return _conversation(line, where)
    if not isinstance(row, dict) or "prompt" not in row:
        raise UsageError(
            f'{where}: expected a JSON object with the key "prompt", got {line.strip()[:_SHOWN]}'
        )
    prompt = row["prompt"]
    if not isinstance(prompt, str | list) or (prompt and isinstance(prompt[0], dict)):
        raise UsageError(
            f'{where}: "prompt" is {json.dumps(prompt)[:_SHOWN]}, expected a string or a list of'
            ' token ids. A conversation has the key "messages".'
        )
    return PromptLine(prompt, where, _category(row))


def _category(row: dict[str, Any]) -> str:
    category = row.get("category", row.get("kind", ""))
    return category if isinstance(category, str) else ""
