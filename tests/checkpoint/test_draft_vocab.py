"""The draft vocabulary file: what is read, and what is refused in which words."""

from __future__ import annotations

from pathlib import Path

import pytest

from trtllm_dflash.checkpoint.draft_vocab import read_draft_vocab
from trtllm_dflash.errors import CheckpointError


def test_ids_come_in_rising_order(tmp_path: Path) -> None:
    (tmp_path / "ids.json").write_text("[9, 0, 4]")
    assert read_draft_vocab(tmp_path / "ids.json", 10).tolist() == [0, 4, 9]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1, 10]", r"id 10 is outside the target's vocabulary \(0 to 9\)"),
        ("[-1]", "id -1 is outside"),
        ("[3, 1, 3]", "3 ids, of which only 2 differ"),
        ("[]", "expected a list of token ids"),
        ("[1, true]", "expected a list of token ids"),
        ("[1.0]", "expected a list of token ids"),
        ('{"ids": [1]}', "expected a list of token ids"),
        ("[1,", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
    ],
)
def test_what_is_refused(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "ids.json").write_text(text)
    with pytest.raises(CheckpointError, match=words):
        read_draft_vocab(tmp_path / "ids.json", 10)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.json: cannot be read as JSON"):
        read_draft_vocab(tmp_path / "none.json", 10)


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "huge.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(CheckpointError, match="expected at most"):
        read_draft_vocab(tmp_path / "huge.json", 10)
