"""The text that engines predict, as windows of token ids."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np

from trtllm_dflash.errors import UsageError
from trtllm_dflash.runtime.sessions.base import Int64

BUILTIN_TEXT = "prose.txt"


@dataclass(frozen=True)
class EvalText:
    """A text and its file."""

    name: str
    text: str


def read_text(path: Path | None) -> EvalText:
    """Read a UTF-8 file, or the package's own text, which no calibration uses.

    Raises:
        UsageError: for a file that cannot be read or is empty.
    """
    if path is None:
        builtin = resources.files("trtllm_dflash.evaluate") / BUILTIN_TEXT
        return EvalText(BUILTIN_TEXT, builtin.read_text(encoding="utf-8"))
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"--text {path}: cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"--text {path}: byte {error.start} is not UTF-8. Save the file as UTF-8."
        ) from error
    if not text.strip():
        raise UsageError(
            f"--text {path} is empty. Give some pages of the kind of text that the model will see."
        )
    return EvalText(str(path), text)


def windows(token_ids: list[int], size: int, *, name: str) -> list[Int64]:
    """Split token ids into consecutive windows of `size`.

    A last window of a single token is left out, since it predicts nothing.

    Raises:
        UsageError: if there is no window of two tokens.
    """
    found = []
    for start in range(0, len(token_ids), size):
        window = token_ids[start : start + size]
        if len(window) > 1:
            found.append(np.array(window, np.int64))
    if not found:
        raise UsageError(
            f"{name}: {len(token_ids)} tokens in it, of which {size} at a time fit the engine;"
            " predicting needs at least 2. Give a longer text."
        )
    return found
