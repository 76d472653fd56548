"""Files that options ask for are tried before the work, and the try leaves everything as it was."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from trtllm_dflash.cli.output_files import check_file, write_file
from trtllm_dflash.errors import OutputError, UsageError


def test_check_file_changes_nothing(tmp_path: Path) -> None:
    old, new, link, pipe = (tmp_path / name for name in ("old", "new", "link", "pipe"))
    old.write_text("as it was")
    link.symlink_to(tmp_path / "elsewhere")
    os.mkfifo(pipe)  # would block whoever opened it
    for path in (old, new, link, pipe, Path(os.devnull)):
        check_file("--json", path)
    check_file("--json", None)
    assert old.read_text() == "as it was"
    assert link.is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "old", "pipe"]


def test_check_file_refuses_bad_paths(tmp_path: Path) -> None:
    lost = tmp_path / "lost"
    lost.symlink_to(tmp_path / "no folder" / "file")
    for path, words in (
        (tmp_path, "this is a folder"),
        (tmp_path / "nowhere" / "x", "there is no folder"),
        (
            tmp_path / ("x" * 300),
            r"cannot be written \(File name too long\). Give another path.",
        ),
        (lost, "cannot be written"),
    ):
        with pytest.raises(UsageError, match=f"^--json {path}: {words}"):
            check_file("--json", path)


def test_check_file_refuses_a_read_only_folder() -> None:
    with (
        tempfile.TemporaryDirectory() as folder
    ):  # not tmp_path: its parents are closed to others
        Path(folder).chmod(0o555)
        with as_nobody(), pytest.raises(UsageError, match="Permission denied"):
            check_file("--json", Path(folder) / "x")


def test_a_file_is_written_whole_or_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, link = tmp_path / "old", tmp_path / "link"
    old.write_text("as it was")
    old.chmod(0o640)
    link.symlink_to(old)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        with pytest.raises(
            OutputError, match=r"--json .*old: cannot be written \(No space left"
        ):
            write_file("--json", old, "new")
    assert old.read_text() == "as it was"
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["link", "old"]
    write_file("--json", link, "new")
    assert link.is_symlink()
    assert old.read_text() == "new"
    assert old.stat().st_mode & 0o777 == 0o640
    write_file("--json", Path(os.devnull), "new")
    assert Path(os.devnull).is_char_device()


def test_a_file_that_others_wrote_meanwhile_stays(tmp_path: Path) -> None:
    for name, before in (("new.json", None), ("old.json", "as it was")):
        path = tmp_path / name
        if before is not None:
            path.write_text(before)
        check_file("--json", path)
        path.write_text("theirs")
        with pytest.raises(OutputError, match="somebody else has written it meanwhile") as told:
            write_file("--json", path, "ours")
        assert path.read_text() == "theirs"
        assert Path(str(told.value).split()[-1]).read_text(encoding="utf-8") == "ours"


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root may write everywhere; anybody else stays who he is."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
