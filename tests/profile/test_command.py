"""dflash-trt profile: tables, files, refusals, and the way to --estimate."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import click
import pytest
from click.testing import CliRunner

from tests.fixtures.tiny_models import tiny_target
from tests.profile.conftest import RunProfile
from trtllm_dflash.builder.build_engine import build_engine
from trtllm_dflash.cli import main, profile_table
from trtllm_dflash.engine_dir import manifest
from trtllm_dflash.errors import UsageError
from trtllm_dflash.options.build import BuildConfig
from trtllm_dflash.profile import theme
from trtllm_dflash.profile.formatting import COLUMNS
from trtllm_dflash.profile.result import Profile

pytestmark = pytest.mark.slow


def test_profile_prints_tables_and_writes_files(
    run_profile: RunProfile, tmp_path: Path, engine: Path
) -> None:
    pytest.importorskip("matplotlib")
    files = {name: tmp_path / f"out.{name}" for name in ("json", "html", "schedule")}
    options = [argument for name, path in files.items() for argument in (f"--{name}", path)]
    result = run_profile("--batch", "1,2", "--draft-lens", "0,5", *options)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith(
        f"{engine}: 6 prompts of 2 categories (chat format), at most 12 new tokens each,"
        " 1 thread of "
    )
    titles = [line.split() for line in lines if line.startswith("system")]
    assert titles == [" ".join(COLUMNS).split()]
    for start, count in (
        ("plain ", 4),
        ("DFlash 5 ", 6),
        ("sentence (4)", 1),
        ("noise (2)", 1),
        ("accepted  ", 1),
        ("accepted by source", 1),
    ):
        assert sum(line.startswith(start) for line in lines) == count, start
    data = json.loads(files["json"].read_text())
    assert data["prompts"]["categories"] == {"sentence": 4, "noise": 2}
    assert data["settings"]["batch"] == [1, 2]
    assert data["engine"]["graph"] == manifest.load(engine)["graph"]
    assert {"dflash-trt", "onnxruntime"} <= data["versions"].keys()
    assert data["machine"]["threads"] == 1
    assert json.loads(files["schedule"].read_text()) == data["advice"]["draft_len_schedule"]
    assert files["html"].read_text().startswith("<!DOCTYPE html>")

    again = CliRunner().invoke(
        main, ["profile", str(files["json"]), "--html", str(tmp_path / "again.html")]
    )
    assert again.exit_code == 0, again.stderr
    assert again.stdout == result.stdout
    assert (tmp_path / "again.html").read_text() == files["html"].read_text()
    schedule = ["--draft-len-schedule", str(files["schedule"])]
    command = ["run", str(engine), *schedule, "--prompts", "-", "--raw"]
    runs = CliRunner().invoke(main, command, input='{"prompt": [3, 5, 7]}\n')
    assert runs.exit_code == 0, runs.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--batch", "0"), "--batch is 0, expected an integer of at least 1"),
        (("--batch", "1,x"), "--batch is '1,x', expected integers with commas between"),
        (("--batch", "1,9"), "--batch 9: "),
        (("--draft-lens", "8"), "--draft-lens 8: a block of 8 holds 7 drafts."),
        (("--draft-lens", "-1"), "--draft-lens is '-1', expected integers"),
        (("--draft-lens", "auto"), "--draft-lens auto: give a number as well, such as 3,auto"),
        (("--draft-lens", "auto,x"), "--draft-lens is 'x', expected integers"),
        (
            ("--against", "plain,vllm"),
            "--against vllm: expected names among plain, reference, hf",
        ),
        (("--against", "hf", "--temperature", "1"), "--against hf is for greedy decoding"),
        (("--max-tokens", "1"), "--max-tokens is 1, expected an integer of at least 2"),
        (("--per-category", "0"), "--per-category is 0, expected an integer of at least 1"),
        (("--input-len", "0"), "--input-len is 0, expected an integer of at least 1"),
        (("--input-len", "300"), "--input-len 300: prompts of this engine hold at most "),
        (("--input-len", "9" * 30), "9: prompts of this engine hold at most "),
        (("--top-p", "2"), "top_p is 2.0, expected a number above 0 and at most 1"),
        (("--json", "nowhere/out.json"), "--json nowhere/out.json: there is no folder nowhere"),
        (("--prompts", "nowhere.txt"), "nowhere.txt: cannot be read"),
    ],
)
def test_profile_refuses_senseless_options(
    run_profile: RunProfile, options: tuple[str, ...], words: str
) -> None:
    result = run_profile(*options)
    assert result.exit_code == 2
    assert words in result.stderr


def test_profile_refuses_unwritable_files_first(
    run_profile: RunProfile, tmp_path: Path
) -> None:
    """They are refused before the engine is even looked at."""
    nothing = tmp_path / "no engine"
    for path, words in (
        (tmp_path, "this is a folder. Give a file"),
        (tmp_path / ("x" * 300), "cannot be written (File name too long)"),
    ):
        for option in ("--json", "--schedule"):
            result = run_profile(option, path, engine=nothing)
            assert result.exit_code == 2
            assert f"{option} {path}: {words}" in result.stderr
    result = run_profile("--json", tmp_path / "out.json", engine=nothing)
    assert "there is no such directory" in result.stderr
    assert not (tmp_path / "out.json").exists()


def test_profile_prints_names_that_look_like_markup(
    run_profile: RunProfile, tmp_path: Path, engine: Path
) -> None:
    """Such names are printed as text; answers of one decode step have no acceptance by position."""
    pytest.importorskip("matplotlib")
    odd = tmp_path / "[" / "x]"
    odd.parent.mkdir()
    odd.symlink_to(engine)
    prompts = tmp_path / "categories.jsonl"
    prompts.write_text(
        "".join(
            json.dumps({"prompt": [5, 9], "category": name}) + "\n"
            for name in ("[/code]", ":cat:")
        )
    )
    result = run_profile(
        "--max-tokens",
        "2",
        "--batch",
        "1",
        "--prompts",
        prompts,
        "--html",
        tmp_path / "out.html",
        engine=odd,
    )
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith(f"{odd}: 2 prompts of 2 categories")
    assert [
        line.split()[0] for line in lines if line.startswith(("[/code] (1)", ":cat: (1)"))
    ] == [
        "[/code]",
        ":cat:",
    ]
    assert not any(line.startswith("accepted  ") for line in lines)
    assert "Where the time goes" in (tmp_path / "out.html").read_text()


def test_profile_writes_files_before_it_prints(
    run_profile: RunProfile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(_: object) -> None:
        raise OSError("the terminal has gone")

    monkeypatch.setattr(profile_table, "print_profile", gone)
    files = [
        argument for name in ("json", "schedule") for argument in (f"--{name}", tmp_path / name)
    ]
    result = run_profile("--batch", "1", "--draft-lens", "5", "--max-tokens", "4", *files)
    assert "the terminal has gone" in result.stderr
    data = json.loads((tmp_path / "json").read_text())
    assert (
        json.loads((tmp_path / "schedule").read_text()) == data["advice"]["draft_len_schedule"]
    )


def test_profile_prints_tables_although_a_file_fails(
    found: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise UsageError("the disk is full")

    path = tmp_path / "old.json"
    path.write_text(json.dumps(found.to_json()))
    monkeypatch.setattr("trtllm_dflash.cli.profiling.write_file", full)
    result = CliRunner().invoke(
        main, ["profile", str(path), "--schedule", str(tmp_path / "schedule")]
    )
    assert result.exit_code == 2
    assert result.stderr == "error: the disk is full\n"
    assert COLUMNS[0] in result.stdout


def test_profile_refuses_options_for_a_measured_file(found: Profile, tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    path.write_text(json.dumps(found.to_json()))
    for option in (
        ("--batch", "1"),
        ("--against", "plain"),
        ("--raw",),
        ("--prompts", "-"),
        ("--ignore-eos",),
    ):
        result = CliRunner().invoke(main, ["profile", str(path), *option])
        assert result.exit_code == 2
        assert (
            f"{option[0]}: {path} is a file of `profile --json`, which is only shown again."
            in result.stderr
        )
    assert CliRunner().invoke(main, ["profile", str(path), "--verbose"]).exit_code == 0


def test_profile_refuses_engines_that_do_not_fit(
    run_profile: RunProfile, engine: Path, plain: Path, tmp_path: Path
) -> None:
    result = run_profile(engine=plain)
    assert result.exit_code == 2
    assert f"{plain}: this engine has no drafter" in result.stderr
    result = run_profile("--plain", engine)
    assert result.exit_code == 2
    assert f"--plain {engine}: this engine has a drafter" in result.stderr
    other = tmp_path / "other"
    build_engine(BuildConfig(str(tiny_target(tmp_path / "target", "qwen3")), other))
    result = run_profile("--plain", other)
    assert result.exit_code == 2
    assert (
        f"--plain {other}: it was built from other weights than the target of {engine}"
        in result.stderr
    )


def test_profile_refuses_a_plain_engine_with_fewer_slots(
    run_profile: RunProfile, tmp_path: Path, engine: Path
) -> None:
    target = next(
        entry for entry in manifest.load(engine)["weights"] if entry["model"] == "target"
    )["directory"]
    build_engine(BuildConfig(target, tmp_path / "one", max_seq_len=96))
    result = run_profile("--plain", tmp_path / "one", "--batch", "2")
    assert result.exit_code == 2
    assert "--batch 2: the plain engine has 1 slots" in result.stderr


def test_profile_refuses_another_checkpoint(engine: Path, tmp_path: Path) -> None:
    other = tiny_target(tmp_path / "target", "qwen3")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": [1, 2]}\n')
    for folder, words in (
        (other, "model.safetensors is not the file that"),
        (tmp_path / "gone", "no such folder"),
    ):
        options = ["--target", str(folder), "--prompts", str(prompts), "--raw"]
        result = CliRunner().invoke(main, ["profile", str(engine), *options])
        assert result.exit_code == 2
        assert words in result.stderr
        assert "--target DIR" in result.stderr


def test_profile_refuses_text_without_a_tokenizer(engine: Path, plain: Path) -> None:
    result = CliRunner().invoke(main, ["profile", str(engine), "--plain", str(plain), "--raw"])
    assert result.exit_code == 2
    assert "this engine has no tokenizer.json" in result.stderr


def test_profile_refuses_html_without_matplotlib_first(
    run_profile: RunProfile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = run_profile("--html", tmp_path / "report.html")
    assert result.exit_code == 2
    assert "pip install '.[profile]' in the dflash-trt repository" in result.stderr
    assert not result.stdout
    with pytest.raises(Exception, match="plots need matplotlib"):
        theme.require_matplotlib()


def test_profile_estimate_is_another_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes options of its own, and no ENGINE."""

    @click.command
    @click.option("--target")
    @click.option("--gpus", type=int)
    def estimate(target: str, gpus: int) -> None:
        click.echo(f"{target} on {gpus}")

    @click.command
    def validate_estimate() -> None:
        click.echo("validated")

    module = ModuleType("trtllm_dflash.cli.estimate")
    vars(module).update(estimate=estimate, validate_estimate=validate_estimate)
    monkeypatch.setitem(sys.modules, "trtllm_dflash.cli.estimate", module)
    result = CliRunner().invoke(
        main, ["profile", "--gpus", "8", "--estimate", "--target", "qwen3-8b"]
    )
    assert (result.exit_code, result.stdout) == (0, "qwen3-8b on 8\n")
    for _ in range(2):  # --verbose goes along, once
        result = CliRunner().invoke(main, ["profile", "--validate-estimate", "--verbose"])
        assert (result.exit_code, result.output) == (0, "validated\n")
