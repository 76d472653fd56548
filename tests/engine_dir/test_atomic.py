"""An engine directory appears whole or not at all, and nothing that no build wrote is ever
deleted.
"""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from trtllm_dflash.engine_dir import atomic, manifest
from trtllm_dflash.errors import BuildError, UsageError


def _engine(directory: Path, text: str = "old") -> Path:
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(text)
    manifest.write(directory, {})
    return directory


def test_a_block_that_succeeds_leaves_the_directory_alone(tmp_path: Path) -> None:
    with atomic.atomic_directory(tmp_path / "a" / "engine") as directory:
        (directory / "file").write_text("x")
        assert not (tmp_path / "a" / "engine").exists()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["engine"]
    assert (tmp_path / "a" / "engine" / "file").read_text() == "x"


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_block_that_fails_leaves_nothing_not_even_parents(
    tmp_path: Path, failure: type[BaseException]
) -> None:
    def fail() -> None:
        with atomic.atomic_directory(tmp_path / "a" / "b" / "engine") as directory:
            (directory / "sub").mkdir()
            raise failure

    with pytest.raises(failure):
        fail()
    assert not list(tmp_path.iterdir())


def test_sigterm_is_a_failure_of_the_block(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught, atomic.atomic_directory(tmp_path / "engine"):
        os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.code == 143
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_engine_is_replaced_in_one_moment(tmp_path: Path) -> None:
    engine = _engine(tmp_path / "engine")
    with atomic.atomic_directory(engine) as directory:
        (directory / "config.json").write_text("new")
        assert (engine / "config.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["engine"]
    assert [path.name for path in engine.iterdir()] == ["config.json"]


def test_the_old_engine_comes_back_if_the_new_one_cannot_move(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, rename = _engine(tmp_path / "engine"), Path.rename

    def fail_once(self: Path, target: Path) -> Path:
        if "building" in self.name and not self.name.endswith("-old"):
            raise OSError("disk on fire")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_once)
    with pytest.raises(OSError, match="disk on fire"), atomic.atomic_directory(engine):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["engine"]
    assert (engine / "config.json").read_text() == "old"


def test_an_empty_or_new_output_is_accepted(tmp_path: Path) -> None:
    atomic.check_output(tmp_path, overwrite=False)
    atomic.check_output(tmp_path / "new", overwrite=False)


def test_a_file_as_output_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        UsageError, match=r"--output-dir .*file is a file; give the name of a directory"
    ):
        atomic.check_output(tmp_path / "file", overwrite=True)


def test_a_place_where_no_directory_can_be_made_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    for output in (tmp_path / "file" / "engine", tmp_path / "file" / "a" / "engine"):
        with pytest.raises(
            UsageError,
            match=rf"--output-dir {output}: .*/file is a file, and nothing can be in it",
        ):
            atomic.check_output(output, overwrite=False)
    monkeypatch.setattr(os, "access", lambda path, _: path != tmp_path)
    with pytest.raises(
        UsageError, match=rf"new/engine: {tmp_path} may not be written; give another"
    ):
        atomic.check_output(tmp_path / "new" / "engine", overwrite=False)


def test_a_file_system_that_takes_nothing_is_one_clear_error() -> None:
    """/proc may be written by its modes, for root."""
    with pytest.raises(
        UsageError, match=r"/proc/engine: no directory can be made there \(.*\); give another"
    ):
        atomic.atomic_directory(Path("/proc/engine")).__enter__()


def test_the_advice_is_the_commands_own(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UsageError, match=r"is not empty; give another$"):
        atomic.check_output_dir(tmp_path)


def test_a_full_output_is_refused_without_overwrite(tmp_path: Path) -> None:
    engine = _engine(tmp_path / "engine")
    with pytest.raises(
        UsageError,
        match=r"engine is not empty; give another, or --overwrite to replace an engine",
    ):
        atomic.check_output(engine, overwrite=False)
    atomic.check_output(engine, overwrite=True)


def test_overwrite_refuses_a_directory_that_is_no_engine(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(
        UsageError,
        match=r"--overwrite replaces an engine, and nothing else is ever deleted: .* no manifest",
    ):
        atomic.check_output(tmp_path, overwrite=True)


def test_overwrite_refuses_an_engine_among_other_files(tmp_path: Path) -> None:
    engine = _engine(tmp_path / "engine")
    (engine / "thesis.tex").touch()
    with pytest.raises(
        UsageError,
        match=r"engine also holds files that no build wrote: thesis.tex. Move them away",
    ):
        atomic.check_output(engine, overwrite=True)


def test_a_disk_that_is_too_small_is_refused_with_both_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil._ntuple_diskusage(10**9, 10**9 - 5000, 5000)  # type: ignore[attr-defined]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(
        BuildError,
        match=r"needs about 1.0 MB, and the disk of .* has 5.0 kB free; give another --output",
    ):
        atomic.check_space(tmp_path / "not" / "yet", 1_000_000)
