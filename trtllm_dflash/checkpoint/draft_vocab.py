"""The draft vocabulary: token ids to which drafting may be limited, to read less of the head.

Any list is lossless, because the target decides. A list that misses common tokens only lowers the
acceptance length.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from trtllm_dflash.errors import CheckpointError

MAX_FILE_BYTES = 1 << 26


def read_draft_vocab(path: Path, vocab_size: int) -> np.ndarray:
    """Return the ids that a JSON file lists, int64, in rising order.

    Raises:
        CheckpointError: if it is no such file, or an id is out of range or occurs twice.
    """
    where = f"draft vocabulary {path}"
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise CheckpointError(
                f"{where}: {path.stat().st_size} bytes, expected at most {MAX_FILE_BYTES}."
            )
        ids = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{where}: cannot be read as JSON ({error}). Give a file like [0, 1, 2, 17]."
        ) from error
    if not isinstance(ids, list) or not ids or not all(type(token) is int for token in ids):
        raise CheckpointError(
            f"{where}: expected a list of token ids like [0, 1, 2, 17], and at least one."
        )
    wrong = [token for token in ids if not 0 <= token < vocab_size]
    if wrong:
        raise CheckpointError(
            f"{where}: id {wrong[0]} is outside the target's vocabulary (0 to {vocab_size - 1})."
        )
    unique = np.unique(np.array(ids, np.int64))
    if len(unique) != len(ids):
        raise CheckpointError(
            f"{where}: {len(ids)} ids, of which only {len(unique)} differ. List each once."
        )
    return unique
