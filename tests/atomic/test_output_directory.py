"""An engine directory appears whole or not at all, and nothing that no build wrote is ever
deleted.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from trtllm_dflash.atomic import swap
from trtllm_dflash.atomic.output_directory import (
    atomic_directory,
    check_output_dir,
    check_space,
)
from trtllm_dflash.atomic.work_folder import LOCK_FILE, work_folder
from trtllm_dflash.engine_dir import manifest
from trtllm_dflash.engine_dir.replacing import check_output, recognize_engine
from trtllm_dflash.errors import BuildError, UsageError


def _engine(directory: Path, text: str = "old") -> Path:
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(text)
    manifest.write(directory, {})
    return directory


def _replacing(engine: Path) -> AbstractContextManager[Path]:
    return atomic_directory(engine, replaces=recognize_engine)


def _names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_a_block_that_succeeds_leaves_the_directory_alone(tmp_path: Path) -> None:
    with atomic_directory(tmp_path / "a" / "engine") as directory:
        (directory / "file").write_text("x")
        assert not (tmp_path / "a" / "engine").exists()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["engine"]
    assert (tmp_path / "a" / "engine" / "file").read_text() == "x"


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_block_that_fails_leaves_nothing_not_even_parents(
    tmp_path: Path, failure: type[BaseException]
) -> None:
    def fail() -> None:
        with atomic_directory(tmp_path / "a" / "b" / "engine") as directory:
            (directory / "sub").mkdir()
            raise failure

    with pytest.raises(failure):
        fail()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_a_failure_of_the_block(number: signal.Signals, tmp_path: Path) -> None:
    inherited = signal.signal(number, signal.SIG_DFL)  # under nohup it is ignored
    try:
        before = signal.getsignal(number)
        with (
            pytest.raises(SystemExit) as caught,
            atomic_directory(tmp_path / "engine"),
        ):
            os.kill(os.getpid(), number)
        assert caught.value.code == 128 + number
        assert not list(tmp_path.iterdir())
        assert signal.getsignal(number) is before
    finally:
        signal.signal(number, inherited)


def test_an_engine_is_replaced_in_one_moment(tmp_path: Path) -> None:
    engine = _engine(tmp_path / "engine")
    with _replacing(engine) as directory:
        (directory / "config.json").write_text("new")
        assert (engine / "config.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["engine"]
    assert [path.name for path in engine.iterdir()] == ["config.json"]


def test_an_ignored_sighup_stays_ignored(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGHUP)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with atomic_directory(tmp_path / "engine"):
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (tmp_path / "engine").is_dir()


def test_the_old_engine_comes_back_if_the_new_one_cannot_move(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, rename = _engine(tmp_path / "engine"), Path.rename

    def fail_once(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise OSError("disk on fire")
        return rename(self, target)

    monkeypatch.setattr(swap, "exchange", lambda *_: False)
    monkeypatch.setattr(Path, "rename", fail_once)
    with pytest.raises(BuildError, match="disk on fire"), _replacing(engine):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["engine"]
    assert (engine / "config.json").read_text() == "old"


@pytest.mark.parametrize("what", ["a directory", "a file", "a link"])
def test_what_appears_during_the_block_is_not_touched(tmp_path: Path, what: str) -> None:
    output, theirs = tmp_path / "engine", tmp_path / "theirs"
    theirs.mkdir()

    def make() -> None:
        with atomic_directory(output) as directory:
            (directory / "config.json").touch()
            if what == "a directory":
                output.mkdir()
                (output / "thesis.tex").touch()
            elif what == "a file":
                output.write_text("thesis")
            else:
                output.symlink_to(theirs)

    with pytest.raises(BuildError, match=r"has come to be there meanwhile, and stays"):
        make()
    assert {path.name for path in tmp_path.iterdir()} == {"engine", "theirs"}
    if what == "a directory":
        assert [path.name for path in output.iterdir()] == ["thesis.tex"]
    assert what != "a file" or output.read_text() == "thesis"
    assert not list(theirs.iterdir())


@pytest.mark.parametrize("in_one_step", [True, False])
def test_an_engine_that_changes_during_the_block_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_one_step: bool
) -> None:
    if not in_one_step:
        monkeypatch.setattr(swap, "exchange", lambda *_: False)
    engine = _engine(tmp_path / "engine")
    with (
        pytest.raises(BuildError, match=r"changed meanwhile: notes.txt has come into it"),
        _replacing(engine),
    ):
        (engine / "notes.txt").write_text("mine")
    assert _names(engine) == {"config.json", "manifest.json", "notes.txt"}
    (engine / "notes.txt").unlink()
    with (
        pytest.raises(BuildError, match="changed meanwhile: it is another one"),
        _replacing(engine),
    ):
        manifest.write(engine, {"by": "another build"})
    assert _names(engine) == {"config.json", "manifest.json"}
    with _replacing(engine) as directory:
        (directory / "new.json").touch()
    assert _names(engine) == {"new.json"}
    assert _names(tmp_path) == {"engine"}


def test_a_file_of_the_last_moment_brings_the_old_engine_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, exchange = _engine(tmp_path / "engine"), swap.exchange

    def slip_in(one: Path, other: Path) -> bool:
        if one.name == "new":
            (other / "notes.txt").touch()
        return exchange(one, other)

    monkeypatch.setattr(swap, "exchange", slip_in)
    with pytest.raises(BuildError, match=r"notes\.txt has come into it"), _replacing(engine):
        pass
    assert _names(engine) == {"config.json", "manifest.json", "notes.txt"}
    assert _names(tmp_path) == {"engine"}


def test_a_manifest_can_list_no_file_elsewhere(tmp_path: Path) -> None:
    thesis = tmp_path / "thesis.tex"
    thesis.touch()
    engine = _engine(tmp_path / "engine")
    data = json.loads((engine / "manifest.json").read_text())
    data["files"] |= {"../thesis.tex": {}, str(thesis): {}}
    (engine / "manifest.json").write_text(json.dumps(data))
    with _replacing(engine):
        pass
    assert thesis.exists()


def test_the_second_writer_of_an_output_is_refused(tmp_path: Path) -> None:
    output = tmp_path / "engine"
    words = r"--output-dir .*engine: another build writes there; wait until"
    with (
        atomic_directory(output),
        atomic_directory(tmp_path / "other"),
    ):
        with pytest.raises(UsageError, match=words):
            check_output(output, overwrite=False)
        with pytest.raises(UsageError, match=words):
            atomic_directory(output).__enter__()
    assert _names(tmp_path) == {"engine", "other"}


def test_leftovers_are_removed_and_look_alikes_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="trtllm_dflash")
    dead, mine = tmp_path / ".engine.building-dead", tmp_path / ".engine.building-1234"
    other = tmp_path / ".engine2.building-dead"
    for folder in (dead, mine, other):
        folder.mkdir()
        (folder / "half").write_bytes(bytes(5000))
    for folder in (dead, other):
        (folder / LOCK_FILE).touch()
    (tmp_path / ".engine.building-empty").mkdir()
    with atomic_directory(tmp_path / "engine"):
        pass
    assert _names(tmp_path) == {"engine", mine.name, other.name}
    assert re.search(r"removed .*building-dead \(5.0 kB\), which a killed command", caplog.text)
    assert f"{mine} looks like the rest of a killed command" in caplog.text


def test_a_work_folder_of_the_living_is_left_alone(tmp_path: Path) -> None:
    with work_folder("w-", tmp_path) as first, work_folder("w-", tmp_path) as second:
        assert first.is_dir()
        assert first != second
    assert not list(tmp_path.iterdir())


def test_long_names_and_names_that_are_no_text(tmp_path: Path) -> None:
    for name in ("x" * 255, os.fsdecode(b"caf\xe9"), "\n", "a b:c"):
        with atomic_directory(tmp_path / name) as directory:
            (directory / "config.json").touch()
        assert _names(tmp_path / name) == {"config.json"}
    with pytest.raises(UsageError, match="File name too long; give another"):
        check_output(tmp_path / ("x" * 256), overwrite=False)


def test_a_place_that_cannot_be_renamed_is_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for output, words in (
        (Path(), "is the current directory or has it inside"),
        (Path("/proc/self/fd"), "is not empty"),
        (Path("/"), "is not empty"),
    ):
        with pytest.raises(UsageError, match=words):
            check_output(output, overwrite=False)
    monkeypatch.setattr(Path, "is_mount", lambda _: True)
    (tmp_path / "volume").mkdir()
    with pytest.raises(UsageError, match="volume is a mount point, and the output appears by"):
        check_output(tmp_path / "volume", overwrite=False)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, r"engine was not written: the disk of .* is full$"),
        (errno.EDQUOT, r"engine was not written: the disk of .* is full$"),
        (errno.EFBIG, r"half is larger than this file system or `ulimit -f` allows$"),
        (errno.EIO, r"engine was not written: .*Input/output error: 'half'$"),
    ],
)
def test_a_write_that_fails_is_told_in_words(tmp_path: Path, number: int, words: str) -> None:
    with (
        pytest.raises(BuildError, match=words),
        atomic_directory(tmp_path / "engine"),
    ):
        raise OSError(number, os.strerror(number), "half")
    assert not list(tmp_path.iterdir())


def test_a_copy_that_fails_is_told_in_words(tmp_path: Path) -> None:
    why = f"[Errno 28] {os.strerror(errno.ENOSPC)}: 'a' -> 'b'"
    with (
        pytest.raises(BuildError, match=r"engine was not written: the disk of .* is full$"),
        atomic_directory(tmp_path / "engine"),
    ):
        raise shutil.Error([("a", "b", why)])


def test_a_clean_up_that_fails_hides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, ignore_errors: bool = False) -> None:
        assert ignore_errors

    monkeypatch.setattr(shutil, "rmtree", fail)

    def make() -> None:
        with atomic_directory(tmp_path / "a" / "engine"):
            (tmp_path / "a" / "theirs").touch()
            raise ValueError("the first error")

    with pytest.raises(ValueError, match="the first error"):
        make()
    assert (tmp_path / "a" / "theirs").exists()


def test_an_empty_or_new_output_is_accepted(tmp_path: Path) -> None:
    check_output(tmp_path, overwrite=False)
    check_output(tmp_path / "new", overwrite=False)


def test_a_file_as_output_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        UsageError, match=r"--output-dir .*file is a file; give the name of a directory"
    ):
        check_output(tmp_path / "file", overwrite=True)


def test_a_place_where_no_directory_can_be_made_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    for output in (tmp_path / "file" / "engine", tmp_path / "file" / "a" / "engine"):
        with pytest.raises(
            UsageError,
            match=rf"--output-dir {output}: .*/file is a file, and nothing can be in it",
        ):
            check_output(output, overwrite=False)
    monkeypatch.setattr(os, "access", lambda path, _: path != tmp_path)
    with pytest.raises(
        UsageError, match=rf"new/engine: {tmp_path} may not be written; give another"
    ):
        check_output(tmp_path / "new" / "engine", overwrite=False)


def test_a_file_system_that_takes_nothing_is_one_clear_error() -> None:
    """/proc may be written by its modes, for root."""
    with pytest.raises(
        UsageError, match=r"/proc/engine: no directory can be made there \(.*\); give another"
    ):
        atomic_directory(Path("/proc/engine")).__enter__()


def test_the_advice_is_the_commands_own(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UsageError, match=r"is not empty; give another$"):
        check_output_dir(tmp_path)


def test_a_full_output_is_refused_without_overwrite(tmp_path: Path) -> None:
    engine = _engine(tmp_path / "engine")
    with pytest.raises(
        UsageError,
        match=r"engine is not empty; give another, or --overwrite to replace an engine",
    ):
        check_output(engine, overwrite=False)
    check_output(engine, overwrite=True)


def test_overwrite_refuses_a_directory_that_is_no_engine(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(
        UsageError,
        match=r"--overwrite replaces an engine, and nothing else is ever deleted: .* no manifest",
    ):
        check_output(tmp_path, overwrite=True)


def test_overwrite_refuses_an_engine_among_other_files(tmp_path: Path) -> None:
    engine = _engine(tmp_path / "engine")
    (engine / "thesis.tex").touch()
    with pytest.raises(
        UsageError,
        match=r"engine also holds files that do not belong to it: thesis.tex. Move them away",
    ):
        check_output(engine, overwrite=True)


def test_a_disk_that_is_too_small_is_refused_with_both_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil._ntuple_diskusage(10**9, 10**9 - 5000, 5000)  # type: ignore[attr-defined]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(
        BuildError,
        match=r"needs about 1.0 MB, and the disk of .* has 5.0 kB free; give another --output",
    ):
        check_space(tmp_path / "not" / "yet", 1_000_000)
