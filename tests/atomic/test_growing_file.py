"""A file of answers appears with its first line, and what was there stays until then."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trtllm_dflash.atomic.growing_file import GrowingFile


def test_without_a_line_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text("old\n")
    GrowingFile(path).close()
    assert path.read_text() == "old\n"
    assert list(tmp_path.iterdir()) == [path]


def test_lines_are_there_at_once(tmp_path: Path) -> None:
    path, link = tmp_path / "answers.jsonl", tmp_path / "link"
    path.write_text("old\n")
    path.chmod(0o600)
    link.symlink_to(path)
    file = GrowingFile(link)
    for expected in ("é\n", "é\n\\ud800\n"):
        file.write_line(expected.splitlines()[-1].replace("\\ud800", "\ud800"))
        assert path.read_text() == expected
    file.close()
    assert sorted(tmp_path.iterdir()) == [path, link]
    assert link.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o600


def test_devices_are_written_where_they_are() -> None:
    file = GrowingFile(Path("/dev/full"))
    with pytest.raises(OSError, match="No space left"):
        file.write_line("x")
    file.close()
    assert Path("/dev/full").is_char_device()


def test_a_failing_first_line_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text("old\n")
    file = GrowingFile(path)
    os.close(file._file.fileno())
    with pytest.raises(OSError, match="Bad file descriptor"):
        file.write_line("x")
    file.close()
    assert path.read_text() == "old\n"
    assert list(tmp_path.iterdir()) == [path]
