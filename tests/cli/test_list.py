"""dflash-trt list, and what its names do in `build`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from trtllm_dflash.builder import build_engine
from trtllm_dflash.catalog.pairs import PAIRS, UNLISTED
from trtllm_dflash.catalog.published import Pair
from trtllm_dflash.cli import main
from trtllm_dflash.cli.build import build
from trtllm_dflash.options.build import BuildConfig

Ask = Callable[..., tuple[str, str | None]]


class AskedError(Exception):
    """Carries what a build was asked for, instead of building."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Ask:
    """`asked(*options)`: the target and the drafter that `build` with these options would build."""

    def stop(config: BuildConfig, **_: object) -> None:
        raise AskedError(config)

    monkeypatch.setattr(build_engine, "build_engine", stop)
    monkeypatch.chdir(tmp_path)

    def run(*options: str) -> tuple[str, str | None]:
        try:
            build.main(["--output-dir", "e", *options], standalone_mode=False)
        except AskedError as carried:
            config: BuildConfig = carried.args[0]
            return config.target, config.drafter
        raise AssertionError("it did not build")

    return run


def test_list_shows_every_pair() -> None:
    result = CliRunner().invoke(main, ["list"])
    assert result.exit_code == 0, result.output
    table, _, reasons = result.stdout.partition("\nwhy not\n")
    lines = [line for line in table.splitlines()[1:] if not line.startswith(" ")]
    assert [line.split()[0] for line in lines] == [pair.name for pair in PAIRS]
    for pair, line in zip(PAIRS, lines, strict=True):
        assert f"  {pair.target.repository}" in table
        assert f"> {pair.drafter.repository}\n" in f"{table}\n"
        builds = line.split()[2]
        assert builds == "every" or pair.name in reasons
        assert (builds == "hand-over") == bool(pair.handover)
    flat = " ".join(reasons.split())
    assert "shows a drafter of the variant" in flat
    assert "CC BY-NC-ND 4.0, research and evaluation only (SGLang, pull request 37392)" in flat
    assert "two revisions of its Qwen3.5 drafters, and this row is the second" in flat
    assert flat.endswith("; ".join(UNLISTED))


@pytest.mark.parametrize(("columns", "widest"), [("80", 80), ("100", 100), ("200", 100)])
def test_list_fits_the_terminal(columns: str, widest: int) -> None:
    shown = CliRunner().invoke(main, ["list"], env={"COLUMNS": columns}).stdout
    assert max(map(len, shown.splitlines())) <= widest


@pytest.mark.parametrize(
    "pair", [pair for pair in PAIRS if pair.handover], ids=lambda pair: pair.name
)
def test_a_handed_over_pair_can_be_exported(pair: Pair, tmp_path: Path) -> None:
    options = ["--gpus", "8", "--max-seq-len", "4096", "--output-dir", str(tmp_path / "out")]
    if pair.drafter.block_size is None:  # then the user has to know it
        options += ["--draft-len", "7"]
    options += ["--target", pair.name, "--drafter", pair.drafter.repository]
    done = CliRunner().invoke(main, ["export-trtllm", *options])
    assert done.exit_code == 0, done.output
    assert pair.drafter.repository in (tmp_path / "out" / "trtllm.yaml").read_text()


def test_list_prints_the_same_as_json() -> None:
    rows = json.loads(CliRunner().invoke(main, ["list", "--json"]).stdout)
    assert [row["name"] for row in rows] == [pair.name for pair in PAIRS]
    by_name = {row["name"]: row for row in rows}
    assert by_name["Qwen3-8B"]["archs"][0] == "cpu"
    assert by_name["Qwen3-8B"]["block_size"] == 16
    assert by_name["Qwen3.8-27B"]["archs"] == by_name["Qwen3-8B"]["archs"]
    assert by_name["Kimi-K2.5"]["handover"]
    assert by_name["Kimi-K2.5"]["licence"] == "unknown"
    assert by_name["GLM-5.3-Flash"]["licence"].startswith("CC BY-NC-ND 4.0")
    assert by_name["GLM-5.3-Flash"]["licence_source"] == "SGLang, pull request 37392"
    assert all(row["source"] and bool(row["archs"]) != bool(row["refusals"]) for row in rows)


def test_listed_name_selects_its_drafter(asked: Ask) -> None:
    assert asked("--target", "qwen3-8b") == ("qwen3-8b", "z-lab/Qwen3-8B-DFlash-b16")
    assert asked("--target", "Qwen/Qwen3-8B") == ("Qwen/Qwen3-8B", "z-lab/Qwen3-8B-DFlash-b16")
    assert asked("--target", "Qwen3-8B", "--drafter", "mine") == ("Qwen3-8B", "mine")
    assert asked("--target", "Qwen3-8B", "--no-drafter") == ("Qwen3-8B", None)


def test_directory_of_a_listed_name_selects_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Qwen3-8B").mkdir()
    result = CliRunner().invoke(main, ["build", "--target", "Qwen3-8B", "--output-dir", "e"])
    assert result.exit_code == 2
    assert "give --drafter DIR|NAME, or pass --no-drafter" in result.stderr


def test_wrong_name_shows_the_nearest() -> None:
    result = CliRunner().invoke(main, ["build", "--target", "gpt-oss120b", "--output-dir", "e"])
    assert result.exit_code == 2
    refusal = (
        "--target gpt-oss120b: neither a directory nor a target of `dflash-trt list`; the nearest"
        " are gpt-oss-120b"
    )
    assert refusal in result.stderr
