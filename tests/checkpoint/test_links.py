"""Links in a checkpoint's directory, and the ways out of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from trtllm_dflash.checkpoint.links import file_in, following_links
from trtllm_dflash.checkpoint.locate import read_json_in
from trtllm_dflash.errors import CheckpointError


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "../a", "/a", "a\\b", "a\0b", "a\n", "\ud800", "a" * 300]
)
def test_names_that_are_no_plain_names(name: str, tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match="is no plain file name, and files elsewhere are not read"
    ):
        file_in(tmp_path, name)


def test_links_inside_are_followed_and_outside_refused(tmp_path: Path) -> None:
    home = tmp_path / "model"
    home.mkdir()
    (home / "real").write_text("{}")
    (tmp_path / "outside").write_text("{}")
    (home / "inside").symlink_to("real")
    (home / "escape").symlink_to("../outside")
    assert file_in(home, "inside") == home / "inside"
    with pytest.raises(
        CheckpointError, match=r"escape links to .*outside, outside the checkpoint's directory"
    ):
        file_in(home, "escape")


def test_a_linked_checkpoint_directory_is_its_target(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "config.json").write_text("{}")
    (tmp_path / "link").symlink_to("real")
    assert read_json_in(tmp_path / "link", "config.json") == {}


def test_the_hub_cache_links_to_its_blobs(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--name" / "snapshots" / "0123"
    blobs = tmp_path / "models--org--name" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "sha").write_text("{}")
    (tmp_path / "secret").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/sha")
    (snapshot / "escape.json").symlink_to("../../../secret")
    assert read_json_in(snapshot, "config.json") == {}
    with pytest.raises(CheckpointError, match="outside the checkpoint's directory"):
        read_json_in(snapshot, "escape.json")


def _cache(tmp_path: Path) -> Path:
    """Return a snapshot in a hub cache whose config.json is a link to a blob."""
    cache = tmp_path / "models--a--b"
    snapshot = cache / "snapshots" / "0123"
    (snapshot / "part").mkdir(parents=True)
    (cache / "blobs").mkdir()
    (cache / "blobs" / "one").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/one")
    (snapshot / "part" / "config.json").symlink_to("../../../blobs/one")
    return snapshot


def test_a_folder_of_a_snapshot_links_to_the_blobs(tmp_path: Path) -> None:
    assert read_json_in(_cache(tmp_path) / "part", "config.json") == {}


def test_blobs_may_lie_on_another_disk(tmp_path: Path) -> None:
    snapshot = _cache(tmp_path)
    blob = snapshot.parent.parent / "blobs" / "one"
    blob.rename(tmp_path / "elsewhere")
    blob.symlink_to(tmp_path / "elsewhere")
    assert read_json_in(snapshot, "config.json") == {}
    assert read_json_in(snapshot / "part", "config.json") == {}


def test_a_snapshot_links_to_nothing_but_blobs(tmp_path: Path) -> None:
    snapshot = _cache(tmp_path)
    (tmp_path / "secret").write_text("{}")
    (snapshot / "other.json").symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match="outside the checkpoint's directory"):
        file_in(snapshot, "other.json")


def test_links_are_followed_where_the_user_allows_it(tmp_path: Path) -> None:
    checkpoint, store = tmp_path / "checkpoint", tmp_path / "store"
    checkpoint.mkdir()
    store.mkdir()
    (store / "config.json").write_text("{}")
    (checkpoint / "config.json").symlink_to(store / "config.json")
    with following_links(allowed=True):
        assert read_json_in(checkpoint, "config.json") == {}
        with pytest.raises(CheckpointError, match="no plain file name"):
            file_in(checkpoint, "../store/config.json")
    with pytest.raises(CheckpointError, match="If the link is your own, give --allow-links"):
        read_json_in(checkpoint, "config.json")
