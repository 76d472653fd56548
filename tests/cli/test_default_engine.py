"""Where an engine goes when nobody says it: a sane name for every target."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from trtllm_dflash.cli import main
from trtllm_dflash.cli.default_engine import default_output_dir


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("gpt-oss-120b", "gpt-oss-120b-sm100"),
        ("openai/gpt-oss-120b", "gpt-oss-120b-sm100"),
        ("models/Qwen3-8B/", "Qwen3-8B-sm100"),
        ("/a/b/my model (v2)", "my-model-v2-sm100"),
        ("../..", "model-sm100"),
        ("..", "model-sm100"),
        ("/", "model-sm100"),
        ("", "model-sm100"),
        ("-rf", "rf-sm100"),
        (".hidden", "hidden-sm100"),
        ("日本", "model-sm100"),
        ("日本-8B", "8B-sm100"),
        ("a\udcffb\n", "a-b-sm100"),
        ("x" * 5000, "x" * 80 + "-sm100"),
        ("$(touch x); `y`", "touch-x-y-sm100"),
    ],
)
def test_default_name_is_one_plain_folder(
    target: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = tmp_path / "日"  # so that ".." has no name of its own to keep
    empty.mkdir()
    monkeypatch.chdir(empty)
    directory = default_output_dir(target, "sm100")
    if target not in ("..", "../.."):
        assert directory == Path("engines") / name
    assert directory.parts[0] == "engines"
    assert len(directory.parts) == 2


def test_default_name_of_a_hub_snapshot(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--Qwen--Qwen3-8B" / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    assert default_output_dir(str(snapshot), "cpu") == Path("engines/Qwen3-8B-cpu")


def test_default_name_of_the_folder_one_is_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert default_output_dir(".", "cpu") == Path("engines/mine-cpu")


def test_build_says_where_it_would_write(
    make_target: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["build", "--target", str(make_target("llama")), "--no-drafter", "--dry-run"]
    result = CliRunner().invoke(main, arguments)
    assert f"{tmp_path}/engines/llama-cpu" in result.stdout, result.output
    assert not (tmp_path / "engines").exists()


def test_architectures_go_by_the_names_of_gpus() -> None:
    command = main.get_command(click.Context(main), "build")  # type: ignore[attr-defined]
    for name, arch in (("b200", "sm100"), ("spark", "sm121"), ("H100", "sm90"), ("cpu", "cpu")):
        context = command.make_context("build", ["--target", "x", "--arch", name])
        assert context.params["arch"] == arch
    refused = CliRunner().invoke(main, ["build", "--target", "x", "--arch", "b2000"])
    assert refused.exit_code == 2
    assert "'b2000' is no known architecture or GPU" in refused.stderr
