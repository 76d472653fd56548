"""The number of drafts by batch size: `run --draft-len-schedule` reads and `profile` writes it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtllm_dflash.errors import UsageError
from trtllm_dflash.options.checks import check_integer, shown
from trtllm_dflash.unique_keys import unique_keys

_FORM = 'expected a JSON object from batch sizes to numbers of drafts, as in {"1": 7, "4": 3}'
_MAX_INT = 2**31 - 1
_MAX_FILE_BYTES = 1_000_000


@dataclass(frozen=True)
class DraftLenSchedule:
    """Rows of (batch size, draft_len), by growing batch size.

    As in TensorRT-LLM, a row holds for batches up to its size, from the row before on. Beyond the
    last row nothing is drafted. With {4: 7, 8: 2} there are 7 drafts for 1 to 4 sequences, 2 for 5
    to 8 and none for more. The batch is what generates at that moment: it shrinks as sequences end.
    Like all drafting, a schedule never changes tokens.

    Raises:
        UsageError: for no rows, sizes that do not grow from 1 on, or a negative draft_len.
    """

    rows: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        """Check the rows."""
        if not self.rows:
            raise UsageError(f"draft_len_schedule has no rows: {_FORM}.")
        last = 0
        for batch, draft_len in self.rows:
            check_integer("batch size in draft_len_schedule", batch, low=1, high=_MAX_INT)
            check_integer("draft_len in draft_len_schedule", draft_len, low=0, high=_MAX_INT)
            if batch <= last:
                raise UsageError(
                    f"draft_len_schedule has the batch size {batch} after {last}: they must grow."
                )
            last = batch

    def draft_len(self, batch: int) -> int:
        """Return the number of drafts for `batch` sequences that generate together."""
        for size, draft_len in self.rows:
            if batch <= size:
                return draft_len
        return 0

    @property
    def draft_lens(self) -> frozenset[int]:
        """Return all numbers of drafts that it may give; 0 is one, beyond its last row."""
        return frozenset({0, *(draft_len for _, draft_len in self.rows)})

    @classmethod
    def from_mapping(cls, mapping: Mapping[Any, Any]) -> DraftLenSchedule:
        """Build from {batch size: draft_len} in any order; keys may be strings, as in JSON."""
        rows = [(_batch_size(batch), draft_len) for batch, draft_len in mapping.items()]
        for batch, _ in rows:
            check_integer("batch size in draft_len_schedule", batch, low=1, high=_MAX_INT)
        return cls(tuple(sorted(rows, key=lambda row: row[0])))

    @classmethod
    def load(cls, path: Path) -> DraftLenSchedule:
        """Read a file; one that cannot be used raises UsageError with its name."""
        try:
            return cls._parse(_read(path))
        except OSError as error:
            raise UsageError(
                f"{path}: cannot be read ({error.strerror}). Give a file that profile wrote."
            ) from error
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from error

    @classmethod
    def _parse(cls, text: bytes) -> DraftLenSchedule:
        try:
            data = json.loads(text, object_pairs_hook=unique_keys(_refusal))
        except (ValueError, RecursionError) as error:
            raise UsageError(f"not JSON ({error}); {_FORM}.") from error
        if not isinstance(data, dict):
            raise UsageError(f"{_FORM}, got {json.dumps(data)[:60]}.")
        return cls.from_mapping(data)

    def to_json(self) -> dict[str, int]:
        """Return the content of a file."""
        return {str(batch): draft_len for batch, draft_len in self.rows}


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        text = file.read(_MAX_FILE_BYTES + 1)
    if len(text) > _MAX_FILE_BYTES:
        raise UsageError(f"more than {_MAX_FILE_BYTES} bytes, and a schedule is a few rows.")
    return text


def _batch_size(key: Any) -> Any:
    """Return a decimal key as an integer; anything else is left for the check to refuse."""
    is_decimal = isinstance(key, str) and key.isascii() and key.isdecimal()
    return int(key) if is_decimal and len(key) < 11 else key


def _refusal(key: str) -> UsageError:
    return UsageError(f"the batch size {shown(key)} stands there twice.")
