"""The manifest finds every byte that changed, and says which."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from trtllm_dflash.engine_dir import manifest
from trtllm_dflash.errors import EngineError


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "weights").write_bytes(bytes(1000))
    manifest.write(
        tmp_path, {"arch": "cpu", "versions": {"numpy": "0.1", "no-such-package": "2.0"}}
    )
    return tmp_path


def _edit(directory: Path, change: Callable[[dict[str, object]], object]) -> None:
    path = directory / "manifest.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_an_untouched_directory_has_no_differences(directory: Path) -> None:
    assert manifest.check(directory, deep=True) == []
    assert manifest.check(directory, deep=False) == []
    facts = manifest.load(directory)
    assert facts["arch"] == "cpu"
    assert facts["files"]["weights"]["bytes"] == 1000


def test_a_missing_file_is_named(directory: Path) -> None:
    (directory / "weights").unlink()
    assert manifest.check(directory, deep=False) == [
        "weights is missing; the build wrote 1000 bytes"
    ]


def test_another_size_is_named_with_both_numbers(directory: Path) -> None:
    (directory / "weights").write_bytes(bytes(999))
    assert manifest.check(directory, deep=False) == [
        "weights has 999 bytes; the build wrote 1000"
    ]


def test_a_changed_byte_is_found_in_large_files_if_deep(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (directory / "weights").write_bytes(bytes(999) + b"x")
    (difference,) = manifest.check(directory, deep=False)
    assert difference.startswith("weights was changed after the build: its sha256 is ")
    monkeypatch.setattr(manifest, "SHALLOW_BYTES", 1000)
    assert manifest.check(directory, deep=False) == []
    assert len(manifest.check(directory, deep=True)) == 1


def test_a_row_that_points_outside_is_not_followed(directory: Path) -> None:
    _edit(
        directory,
        lambda data: data.update(
            files={"../outside": {"bytes": 1, "sha256": ""}, "weights": 3}
        ),
    )
    assert manifest.check(directory, deep=True) == [
        "manifest.json has a row that this version cannot read: '../outside'",
        "manifest.json has a row that this version cannot read: 'weights'",
    ]


def test_a_manifest_without_files_is_a_difference(directory: Path) -> None:
    _edit(directory, lambda data: data.update(files={}))
    assert manifest.check(directory, deep=True) == ["manifest.json lists no files"]


def test_a_pipe_is_no_manifest(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "manifest.json")
    with pytest.raises(EngineError, match=r"manifest.json is no file; build the engine again"):
        manifest.load(tmp_path)


def test_a_directory_without_a_manifest_is_no_engine(tmp_path: Path) -> None:
    with pytest.raises(
        EngineError, match=r"no manifest.json, so this is not an engine directory. Give the"
    ):
        manifest.check(tmp_path, deep=False)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", r"manifest.json: this is not valid JSON \(.*\)\. Get an intact copy"),
        (
            '{"schema": 99}',
            r"manifest.json: schema 99, expected 1; it was written by a newer dflash-trt: use that",
        ),
        ('{"schema": "1"}', r'manifest.json: schema "1", expected 1; build the engine again'),
        ('{"schema": true}', r"manifest.json: schema true, expected 1; build the engine again"),
        ("[]", r"manifest.json: expected a JSON object, got list"),
        ('{"schema": 1, "versions": [1]}', "versions is not versions by package; build"),
        ('{"schema": 1, "kernels": [{}]}', "kernels is not a list of objects with kernel,"),
        ('{"schema": 1, "created": 7}', "created is not a text"),
        ('{"schema": 1, "platform": {"machine": 7}}', "platform is not facts of a machine"),
    ],
)
def test_an_unreadable_manifest_is_an_error(directory: Path, text: str, words: str) -> None:
    (directory / "manifest.json").write_text(text)
    with pytest.raises(EngineError, match=words):
        manifest.load(directory)


def test_other_versions_are_told_apart_from_other_files(directory: Path) -> None:
    numpy, missing = manifest.version_differences(manifest.load(directory))
    assert numpy.startswith("numpy is ")
    assert numpy.endswith(" here; the engine was built with 0.1")
    assert missing == "no-such-package is not installed here; the engine was built with 2.0"


def test_another_platform_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    here = {"machine": "x86_64", "system": "Linux", "libc": "glibc 2.36"}
    monkeypatch.setattr(manifest, "platform_facts", lambda: here)
    for built in ({}, here, here | {"libc": "glibc 2.39"}):
        assert manifest.platform_difference({"platform": built}) is None
    assert manifest.platform_difference({}) is None
    told = manifest.platform_difference({"platform": here | {"machine": "aarch64"}})
    assert told is not None
    assert told.startswith(
        "the engine was built on Linux aarch64, and this is Linux x86_64: whether such an engine"
        " runs here is not known"
    )
