"""The whole estimate: points, advice, JSON, what is printed, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.fixtures.tiny_models import tiny_drafter, tiny_target
from trtllm_dflash.builder.pair_support import list_support
from trtllm_dflash.cli import main
from trtllm_dflash.cli.estimate import run_estimate, run_validation
from trtllm_dflash.errors import DFlashError, UsageError
from trtllm_dflash.estimate.report import EstimateReport, report
from trtllm_dflash.estimate.run import Estimate, estimate
from trtllm_dflash.options.draft_len_schedule import DraftLenSchedule
from trtllm_dflash.options.estimate import EstimateConfig
from trtllm_dflash.profile.schema import check


def config(**changes: Any) -> EstimateConfig:
    settings: dict[str, Any] = {
        "target": "gpt-oss-20b",
        "drafter": "gpt-oss-20b-DFlash",
        "arch": "sm100",
    }
    return EstimateConfig(**settings | {"batch": "1,16,256", "tau": "3.5"} | changes)


@pytest.fixture(scope="module")
def found() -> Estimate:
    return estimate(config(eagle="3,3,1,2.4"))


def test_points_are_steps(found: Estimate) -> None:
    assert [row.point.batch for row in found.plain] == [1, 16, 256]
    for index, (plain, dflash) in enumerate(zip(found.plain, found.dflash, strict=True)):
        assert dflash.point.acceptance_length == pytest.approx(3.5)
        ratio = (
            dflash.point.acceptance_length * plain.point.step_seconds / dflash.point.step_seconds
        )
        assert found.speedup(index) == pytest.approx(ratio)
        assert dflash.point.step_seconds == dflash.time.seconds
    assert [curve.name for curve in found.curves] == ["plain", "DFlash", "EAGLE-3"]
    assert all(curve.estimated for curve in found.curves)


def test_equal_interactivity_is_on_both_frontiers(found: Estimate) -> None:
    rows = found.at_equal_interactivity()
    assert [row[:2] for row in rows] == sorted(
        (r.point.tokens_per_second_per_user, r.point.tokens_per_second_per_gpu) for r in found.plain
    )
    most = max(point.tokens_per_second_per_gpu for point in found.drafted)
    assert rows[0][2] <= most
    # Alone, a plain sequence is slower than one with drafts in a batch of 16.
    assert rows[-1][2] > rows[-1][1] * 16


def test_advice_is_the_best_number_of_drafts(found: Estimate) -> None:
    """Against a search of its own; what is within 1 % of the best counts as good, and then fewer
    drafts are taken.
    """
    machine, pair = found.machine, found.pair
    for row in found.advice.batches:
        plain = machine.time(pair.plain(), batch=row.batch, context=1024, drafts=False).seconds
        speeds = {0: 1.0}
        for k in range(1, 8):
            step = machine.time(
                pair.dflash(8, k), batch=row.batch, context=1024, drafts=True
            ).seconds
            speeds[k] = found.acceptance.tau(k) * plain / step
        assert row.speedup == pytest.approx(speeds[row.draft_len])
        assert row.draft_len == min(k for k in speeds if speeds[k] >= 0.99 * max(speeds.values()))
    schedule = DraftLenSchedule.from_mapping(found.advice.draft_len_schedule)
    assert [schedule.draft_len(row.batch) for row in found.advice.batches] == [
        r.draft_len for r in found.advice.batches
    ]


def test_hopeless_drafts_are_switched_off() -> None:
    off = estimate(config(tau="1.02"))
    assert [row.draft_len for row in off.advice.batches] == [0, 0, 0]
    assert off.advice.stops_paying_at == 1
    assert off.blocks == (1, 1, 1)
    assert set(off.advice.draft_len_schedule.values()) == {0}


def test_json_is_as_declared(found: Estimate) -> None:
    data = json.loads(json.dumps(report(found).to_json()))
    assert check(data, EstimateReport) == []
    steps = {(row["way"], row["batch"]): row for row in data["steps"]}
    assert len(steps) == 9
    for row in steps.values():
        assert sum(row["seconds_by_limit"].values()) == pytest.approx(row["step_seconds"])
        assert row["limited_by"] == max(row["seconds_by_limit"], key=row["seconds_by_limit"].get)
    assert steps["plain", 16]["speedup"] == 1.0
    assert check(data | {"more": 1}, EstimateReport) != []


def test_batches_that_do_not_fit_are_left_out() -> None:
    """Qwen3-8B keeps 164 KiB a position with its drafter: 64 sequences of 16384 are 176 GB, and a
    B200 has 180.
    """
    pair = {"target": "Qwen3-8B", "drafter": "Qwen3-8B-DFlash-b16", "context": 16384}
    found = estimate(config(**pair, batch="32,64"))
    assert [row.point.batch for row in found.plain] == [32]
    assert found.left_out == (64,)
    with pytest.raises(UsageError, match="1 x B200 have 180 GB, and batch 64 needs 195 GB"):
        estimate(config(**pair, batch="64"))


def test_it_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    files = {"json": tmp_path / "out.json", "plot": tmp_path / "out.svg"}
    run_estimate(config(batch="1,8", gpus=2, runtime="serving", **files))
    out = capsys.readouterr().out
    for text in (
        "τ of 7 drafts: 3.5 (--tau)",
        "32 experts, 4 a token",
        "2 GPUs share every layer",
        "4 µs that each kernel",
    ):
        assert text in out.replace("\n", " ")
    assert "draft_len_schedule" in out
    assert json.loads(files["json"].read_text())["gpus"] == 2
    assert "tokens/s a user" in files["plot"].read_text()


@pytest.mark.parametrize(
    ("name", "words"),
    [("x.foo", r"ends with one of .*\.svg"), ("x", "ends with one of"), ("", "folder")],
)
def test_a_plot_of_no_kind_is_refused_before_the_work(
    name: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("trtllm_dflash.estimate.run.estimate", pytest.fail)
    with pytest.raises(UsageError, match=f"--plot .*{words}"):
        run_estimate(config(plot=tmp_path / name))
    assert list(tmp_path.iterdir()) == []


def test_names_that_look_like_markup(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    target = tiny_target(tmp_path / "[" / "x]", "qwen3")
    drafter = tiny_drafter(tmp_path / "drafter", target)
    run_estimate(config(target=str(target), drafter=str(drafter), batch="1", tau="2"))
    assert capsys.readouterr().out.startswith(f"{target} with {drafter} on ")


def test_both_flags_are_commands_of_their_own() -> None:
    """`profile --estimate` needs no engine, and says what it needs."""
    runner = CliRunner()
    done = runner.invoke(main, ["profile", "--estimate", "--target", "gpt-oss-20b"])
    assert done.exit_code == 2
    assert "Missing option '--arch'" in done.output
    pair = ["--target", "Qwen3-4B", "--drafter", "Qwen3-4B-DFlash-b16"]
    done = runner.invoke(main, ["profile", "--estimate", *pair, "--arch", "sm120", "--batch", "1"])
    assert done.exit_code == 0
    assert "draft_len_schedule" in done.output
    assert "published" in runner.invoke(main, ["profile", "--validate-estimate", "--help"]).output


def test_the_validation_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    run_validation()
    page = (Path(__file__).parents[2] / "docs" / "estimate" / "README.md").read_text()
    table, _, rest = (
        capsys.readouterr()
        .out.strip()
        .partition("\n\ngpt-oss-120b, throughput at equal interactivity, ")
    )
    title, _, fifteen = rest.partition("\n\n")
    assert "15x at 500 to 600 tokens/s a user" in title
    assert len(table) > 1000
    assert table in page
    assert "15x at" in fifteen
    assert fifteen in page


def test_a_published_tau_is_the_default() -> None:
    found = estimate(config(tau=None, batch="1"))
    assert found.acceptance.tau(7) == pytest.approx(4.53)
    assert "table 11" in found.tau_source


def test_a_listed_name_brings_its_drafter() -> None:
    found = estimate(config(target="qwen3-coder-30b-a3b", drafter=None, tau=None, batch="1"))
    assert found.drafter_name == "z-lab/Qwen3-Coder-30B-A3B-DFlash"
    assert found.pair.target.name == "Qwen/Qwen3-Coder-30B-A3B-Instruct"
    assert report(found).drafter == found.drafter_name


def test_every_listed_pair_that_builds_is_estimated() -> None:
    """By its name alone; the others are refused as `build` does."""
    for status in list_support():
        asked = config(target=status.pair.name, drafter=None, batch="1", tau="2", gpus=8)
        if status.archs:
            assert estimate(asked).pair.drafter.name == status.pair.drafter.repository
        else:
            with pytest.raises(DFlashError):
                estimate(asked)


def test_models_in_directories(tmp_path: Path) -> None:
    """Their config.json is enough; a τ must be said."""
    target = tiny_target(tmp_path / "target", "qwen3")
    drafter = tiny_drafter(tmp_path / "drafter", target)
    for path in (*target.glob("*.safetensors"), *drafter.glob("*.safetensors")):
        path.unlink()
    pair = {"target": str(target), "drafter": str(drafter), "arch": "sm120"}
    assert estimate(config(**pair, tau="2")).machine.gpu.arch == "sm120"
    with pytest.raises(UsageError, match="--tau is needed"):
        estimate(config(**pair, tau=None))
    with pytest.raises(
        UsageError,
        match=r"does not fit the target .*: hidden_size is 2880 in the drafter and 48 in",
    ):
        estimate(config(target=str(target)))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"batch": "1,x"}, "--batch '1,x' is no list"),
        ({"batch": "0"}, "--batch '0' is no list"),
        ({"gpus": 0}, "--gpus is 0, expected an integer from 1 to 64"),
        ({"gpu": "RTX 5090"}, "--gpu 'RTX 5090' is no sm100 in the table, which has B200, GB200"),
        ({"arch": "sm86"}, "--arch sm86: no GPU of it is in the table"),
        ({"eagle": "60,7,10"}, "--eagle '60,7,10' is no TOKENS,DEPTH,BRANCHES,TAU"),
        ({"eagle": "60,7,10,9"}, "that yields 1 to depth"),
        (
            {"target": "gpt-5"},
            "--target gpt-5: neither a directory nor a target of `dflash-trt list`",
        ),
        ({"target": "gpt-oss-120"}, "`dflash-trt list`; the nearest are gpt-oss-120b, gpt-oss-20b"),
        ({"drafter": "x"}, "--drafter x: neither a directory nor a drafter of `dflash-trt list`"),
        (
            {"drafter": "gpt-oss-20-dflash"},
            "the nearest are z-lab/gpt-oss-20b-DFlash, z-lab/gpt-oss-120b-DFlash",
        ),
        (
            {"drafter": "nvidia/MiniMax-M2.7-DFlash"},
            "its sizes are not published; give its directory",
        ),
        (
            {"drafter": "gpt-oss-120b-DFlash"},
            (
                "the drafter z-lab/gpt-oss-120b-DFlash does not fit the target openai/gpt-oss-20b:"
                " num_target_layers is 36, but the target has 24 layers"
            ),
        ),
        ({"target": "gpt-oss-120b"}, "num_target_layers is 24, but the target has 36 layers"),
        (
            {"arch": "sm80", "quant": "fp8"},
            "--quant fp8: A100 80GB (sm80) has no arithmetic for FP8. Who has it: sm89 (Ada)",
        ),
        (
            {"arch": "sm80", "drafter_quant": "fp8"},
            "--drafter-quant fp8: A100 80GB (sm80) has no arithmetic for FP8",
        ),
        (
            {"arch": "sm80", "kv_cache_dtype": "fp8"},
            "--kv-cache-dtype fp8: A100 80GB (sm80) has no arithmetic for FP8",
        ),
        ({"tau": "9"}, "--tau 9.0 is impossible"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(UsageError, match=re.escape(problem)):
        estimate(config(**changes))
