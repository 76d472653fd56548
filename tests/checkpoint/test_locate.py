"""Directories, hub names, and JSON files in a directory."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from trtllm_dflash.checkpoint import locate
from trtllm_dflash.checkpoint.locate import find_directory, read_json_in
from trtllm_dflash.errors import CheckpointError, ConfigError


def test_existing_directory(tmp_path: Path) -> None:
    assert find_directory(tmp_path) == tmp_path
    assert find_directory(str(tmp_path)) == tmp_path


def test_file_instead_of_directory(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(
        CheckpointError,
        match=r"model.safetensors is a file, expected the checkpoint's directory",
    ):
        find_directory(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    "name", ["./nowhere", "/no/such/place", "a/b/c", "../x/y", "", "org/", "org/na me", "-o"]
)
def test_neither_directory_nor_hub_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        CheckpointError, match=f"{name!r}: there is no such directory, and it is no hub name"
    ):
        find_directory(name)


@pytest.mark.parametrize(
    "name", ["gpt2", "Qwen/Qwen3-4B", "z-lab/Qwen3-4B-DFlash-b16", "org/a_b.c"]
)
def test_hub_names_are_fetched_without_pickles(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    asked: dict[str, Any] = {}

    def snapshot_download(
        repo: str,
        *,
        allow_patterns: list[str],
        ignore_patterns: list[str],
        local_files_only: bool,
    ) -> str:
        asked.update(
            repo=repo, patterns=allow_patterns, ignored=ignore_patterns, local=local_files_only
        )
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert find_directory(name) == tmp_path
    assert asked["repo"] == name
    assert not any(
        pattern.endswith((".bin", ".pt", ".py")) or pattern == "*"
        for pattern in asked["patterns"]
    )
    assert any(fnmatch("original/model.safetensors", pattern) for pattern in asked["ignored"])
    assert not any(fnmatch("model.safetensors", pattern) for pattern in asked["ignored"])
    assert not asked["local"]


def test_a_known_name_is_its_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, bool]] = []

    def fetch(name: str, files: Sequence[str], *, fetch: bool) -> Path:
        asked.append((name, fetch))
        return tmp_path

    monkeypatch.setattr(locate, "_fetch", fetch)
    find_directory("qwen3-8b")
    find_directory("Qwen/Qwen3-8B", fetch=False)
    find_directory("qwen3-8b-dflash-b16", role="drafter")
    assert asked == [
        ("Qwen/Qwen3-8B", True),
        ("Qwen/Qwen3-8B", False),
        ("z-lab/Qwen3-8B-DFlash-b16", True),
    ]


def test_configuration_is_checked_before_weights_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Sequence[str]] = []

    def fetch(name: str, files: Sequence[str], *, fetch: bool) -> Path:
        asked.append(files)
        return tmp_path

    def refuse(directory: Path) -> None:
        assert directory == tmp_path
        raise CheckpointError("it has experts")

    monkeypatch.setattr(locate, "_fetch", fetch)
    with pytest.raises(CheckpointError, match="it has experts"):
        find_directory("org/unlisted", check=refuse)
    assert asked == [("config.json", "generation_config.json", "hf_quant_config.json")]
    find_directory("org/unlisted", check=lambda _: None)
    assert "*.safetensors" in asked[-1]


def test_a_directory_wins_over_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Qwen3-8B").mkdir()
    assert find_directory("Qwen3-8B") == Path("Qwen3-8B")


def test_a_name_that_is_nearly_known_is_not_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locate, "_fetch", lambda *_, **__: pytest.fail("it fetched"))
    with pytest.raises(
        CheckpointError,
        match=r"'gpt-oss-12b': .* no known target of that name; the nearest are gpt-o",
    ):
        find_directory("gpt-oss-12b")
    with pytest.raises(
        CheckpointError,
        match=r"no known drafter of that name; the nearest are z-lab/gpt-oss-120b-DF",
    ):
        find_directory("gpt-oss-120-DFlash", role="drafter")


def test_failing_hub_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")

    def snapshot_download(*_: Any, **__: Any) -> str:
        raise ConnectionError("no route to host\nand a long traceback")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    words = (
        "no-such-org/model: it is neither a directory here nor .* failed: no route to host[.] .*hf"
        " download no-such-org"
    )
    with pytest.raises(CheckpointError, match=words) as caught:
        find_directory("no-such-org/model")
    assert "traceback" not in str(caught.value)


def test_offline_hub_really(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        CheckpointError,
        match=r"`hf download z-lab/Qwen3-8B-DFlash-b16 --local-dir D`; then --target T",
    ):
        find_directory("Qwen3-8B", fetch=False)
    for fetch in (True, False):
        with pytest.raises(
            CheckpointError, match="`hf download no-such-org/no-such-model --local-dir DIR`"
        ):
            find_directory("no-such-org/no-such-model", fetch=fetch)


def test_json_that_is_a_directory(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    with pytest.raises(ConfigError, match=r"config.json: this is not a regular file"):
        read_json_in(tmp_path, "config.json")


def test_json_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_bytes(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    with pytest.raises(
        ConfigError, match=r"config\.json: cannot be read \(Permission denied\)"
    ):
        read_json_in(tmp_path, "config.json")


def test_json_that_is_not_there(tmp_path: Path) -> None:
    assert read_json_in(tmp_path, "generation_config.json") is None
