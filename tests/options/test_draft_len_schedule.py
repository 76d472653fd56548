"""Drafts by batch size: what a schedule says, and which ones are refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from trtllm_dflash.errors import UsageError
from trtllm_dflash.options.draft_len_schedule import DraftLenSchedule


def test_row_holds_up_to_its_batch_size() -> None:
    schedule = DraftLenSchedule.from_mapping({8: 2, "4": 7})
    assert schedule.rows == ((4, 7), (8, 2))
    assert [schedule.draft_len(batch) for batch in (1, 4, 5, 8, 9, 100)] == [7, 7, 2, 2, 0, 0]
    assert schedule.draft_lens == {0, 2, 7}


def test_schedule_turns_off_and_on_again() -> None:
    schedule = DraftLenSchedule(((1, 0), (3, 4)))
    assert [schedule.draft_len(batch) for batch in (1, 2, 3, 4)] == [0, 4, 4, 0]


def test_schedule_file_is_read_back(tmp_path: Path) -> None:
    schedule, path = DraftLenSchedule(((2, 5), (6, 1))), tmp_path / "schedule.json"
    path.write_text('{"6": 1, "2": 5}')
    assert DraftLenSchedule.load(path) == schedule
    assert schedule.to_json() == {"2": 5, "6": 1}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{}", "draft_len_schedule has no rows"),
        ("[3]", "expected a JSON object from batch sizes to numbers of drafts"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"0": 1}', "batch size in draft_len_schedule is 0, expected an integer from 1"),
        ('{"x": 1}', "batch size in draft_len_schedule is 'x', expected an integer"),
        ('{"-1": 1}', "batch size in draft_len_schedule is '-1', expected an integer"),
        ('{"99999999999": 1}', "batch size in draft_len_schedule is '99999999999', expected"),
        ('{"1": -1}', "draft_len in draft_len_schedule is -1, expected an integer from 0"),
        ('{"1": 1.0}', "draft_len in draft_len_schedule is 1.0, expected an integer"),
        ('{"1": true}', "draft_len in draft_len_schedule is True, expected an integer"),
        ('{"1": 2, "01": 3}', "has the batch size 1 after 1: they must grow"),
        ('{"1": 2, "1": 3}', "the batch size '1' stands there twice"),
        (" " * 1_000_001, "more than 1000000 bytes"),
    ],
)
def test_schedule_file_is_refused(content: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "schedule.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=f"{re.escape(str(path))}: .*{re.escape(words)}"):
        DraftLenSchedule.load(path)


def test_schedule_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        DraftLenSchedule.load(tmp_path / "nowhere.json")


@pytest.mark.parametrize("rows", [((2, 1), (1, 3)), ((1, 1), (1, 3)), (("1", 2),)])
def test_schedule_rows_must_grow(rows: Any) -> None:
    with pytest.raises(UsageError, match="batch size"):
        DraftLenSchedule(rows)
