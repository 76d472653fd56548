"""The draft vocabulary: token ids to which drafting may be limited, to read less of the head.

Any list is lossless, because the target decides. A list that misses common tokens only lowers the
acceptance length. A drafter that was trained for a part of the vocabulary brings its own list.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trtllm_dflash.checkpoint.safetensors import TensorInfo
from trtllm_dflash.errors import CheckpointError
from trtllm_dflash.models.draft_tables import IS_DRAFTED, OFFSETS
from trtllm_dflash.models.drafter import DrafterConfig

MAX_FILE_BYTES = 1 << 26
_OFFSET_DTYPES: Mapping[str, Any] = {"I64": np.dtype("<i8"), "I32": np.dtype("<i4")}
_FLAG_DTYPES: Mapping[str, Any] = {"BOOL": np.dtype(np.uint8)}


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


def own_vocabulary(
    infos: Mapping[str, TensorInfo], config: DrafterConfig, where: str
) -> np.ndarray | None:
    """Return the token ids that the rows of a drafter's own head stand for, int64 [rows].

    Row i stands for token i + d2t[i], which is an offset. t2d says of each token if it can be
    drafted, and must agree. None: the drafter has no list.

    Raises: CheckpointError: for a list that is missing, of another type, out of range, with a token
    twice, or not t2d's.
    """
    if config.draft_vocab_size is None:
        return None
    if OFFSETS not in infos:
        raise CheckpointError(
            f"{where}: draft_vocab_size is {config.draft_vocab_size} of {config.vocab_size} tokens,"
            f" but there is no tensor {OFFSETS} that says which. Get a complete copy."
        )
    offsets = _read(infos[OFFSETS], _OFFSET_DTYPES, where).astype(np.int64)
    # A sum that overflows lies outside the vocabulary as well.
    ids = np.arange(len(offsets)) + offsets
    outside = np.flatnonzero((ids < 0) | (ids >= config.vocab_size))
    if len(outside):
        row = outside[0]
        raise CheckpointError(
            f"{where}: {OFFSETS}[{row}] is {offsets[row]}, so row {row} of the head stands for"
            f" token {row} + {offsets[row]} = {ids[row]}, and tokens are 0 to"
            f" {config.vocab_size - 1}."
        )
    unique, counts = np.unique(ids, return_counts=True)
    if len(unique) != len(ids):
        raise CheckpointError(
            f"{where}: {len(ids)} rows of the head stand for {len(unique)} tokens only; {OFFSETS}"
            f" has token {unique[counts > 1][0]} more than once. {OFFSETS} is an offset: row i"
            f" stands for token i + {OFFSETS}[i]."
        )
    if IS_DRAFTED in infos:
        flags = _read(infos[IS_DRAFTED], _FLAG_DTYPES, where)
        _check_flags(flags, unique, where)
    return ids


def _check_flags(flags: np.ndarray, ids: np.ndarray, where: str) -> None:
    """Raise CheckpointError if the tokens that t2d flags are not `ids`, in rising order."""
    flagged = np.flatnonzero(flags)
    if not np.array_equal(flagged, ids):
        token = np.setxor1d(flagged, ids)[0]
        has, other = (OFFSETS, IS_DRAFTED) if token in ids else (IS_DRAFTED, OFFSETS)
        raise CheckpointError(
            f"{where}: {has} has token {token} and {other} has not ({OFFSETS} lists {len(ids)}"
            f" tokens, {IS_DRAFTED} {len(flagged)}). {OFFSETS} is taken as an offset: row i stands"
            f" for token i + {OFFSETS}[i]. Get an intact copy."
        )


def _read(info: TensorInfo, dtypes: Mapping[str, Any], where: str) -> np.ndarray:
    """Return the elements of a tensor of one axis."""
    if info.dtype not in dtypes:
        raise CheckpointError(
            f"{where}: tensor {info.name} is {info.dtype}, expected {' or '.join(dtypes)}."
        )
    with info.path.open("rb") as file:
        file.seek(info.offset)
        return np.fromfile(file, dtype=dtypes[info.dtype], count=info.shape[0])
