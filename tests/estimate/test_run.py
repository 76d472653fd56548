"""The whole estimate: points, advice, JSON, what is printed, and what is refused."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.fixtures.tiny_models import tiny_drafter, tiny_target
from trtllm_dflash.builder.pair_support import list_support
from trtllm_dflash.cli import main
from trtllm_dflash.cli.estimate import run_estimate
from trtllm_dflash.errors import DFlashError, UsageError
from trtllm_dflash.estimate.acceptance import acceptance_length
from trtllm_dflash.estimate.report import EstimateReport
from trtllm_dflash.estimate.run import EstimateInputs, estimate, read_inputs
from trtllm_dflash.options.draft_len_schedule import DraftLenSchedule
from trtllm_dflash.options.estimate import EstimateConfig
from trtllm_dflash.profile.schema import check


def config(**changes: Any) -> EstimateConfig:
    settings: dict[str, Any] = {
        "target": "gpt-oss-20b",
        "drafter": "gpt-oss-20b-DFlash",
        "arch": "sm100",
    }
    return EstimateConfig(
        **settings | {"batch": "1,16,256", "acceptance_length": "3.5"} | changes
    )


@pytest.fixture(scope="module")
def found() -> EstimateReport:
    return estimate(config(eagle="3,3,1,2.4"))


@pytest.fixture(scope="module")
def inputs() -> EstimateInputs:
    return read_inputs(config())


def test_estimate_points_are_steps(found: EstimateReport) -> None:
    plain, dflash = found.steps_of("plain"), found.steps_of("DFlash")
    assert [step.batch for step in plain] == [1, 16, 256]
    for ours, base in zip(dflash, plain, strict=True):
        assert ours.acceptance_length == pytest.approx(3.5)
        ratio = ours.acceptance_length * base.step_seconds / ours.step_seconds
        assert ours.speedup == pytest.approx(ratio)
        assert ours.step_seconds == sum(ours.seconds_by_limit.values())
    assert [curve.name for curve in found.curves] == ["plain", "DFlash", "EAGLE-3"]
    assert all(curve.estimated for curve in found.curves)


def test_equal_interactivity_is_on_both_frontiers(
    found: EstimateReport, inputs: EstimateInputs
) -> None:
    rows, plain = found.equal_interactivity, found.steps_of("plain")
    assert [row.plain_batch for row in rows] == [256, 16, 1]
    for row in rows[:-1]:
        assert row.ratio == pytest.approx(row.dflash_per_gpu / row.plain_per_gpu)
        # Where every user gets the same, throughput is that of so many of them.
        users = row.dflash_per_gpu / row.tokens_per_second_per_user
        assert row.dflash_batch == pytest.approx(min(users, 256))
    assert rows[-1].ratio is None
    assert [(row.tokens_per_second_per_user, row.plain_per_gpu) for row in rows] == sorted(
        (step.tokens_per_second_per_user, step.tokens_per_second_per_gpu) for step in plain
    )
    drafted = [step for k in range(1, 8) for step in inputs.dflash_steps(8, k)]
    assert rows[0].dflash_per_gpu <= max(point.tokens_per_second_per_gpu for point in drafted)
    # Alone, a plain sequence is slower than one with drafts in a batch of 16.
    assert rows[-1].dflash_per_gpu > rows[-1].plain_per_gpu * 16


def test_advice_is_the_best_number_of_drafts(
    found: EstimateReport, inputs: EstimateInputs
) -> None:
    """Compare with a search of its own.

    What is within 1 % of the best counts as good, and then fewer drafts are taken.
    """
    roofline, pair = inputs.roofline, inputs.pair
    for row in found.advice.batches:
        plain = roofline.time(pair.plain_step(), batch=row.batch, context=1024, drafts=False)
        speeds = {0: 1.0}
        for k in range(1, 8):
            costs = pair.dflash_step(8, k)
            step = roofline.time(costs, batch=row.batch, context=1024, drafts=True)
            length = acceptance_length(inputs.shares, k)
            speeds[k] = length * plain.seconds / step.seconds
        assert row.speedup == pytest.approx(speeds[row.draft_len])
        assert row.draft_len == min(
            k for k in speeds if speeds[k] >= 0.99 * max(speeds.values())
        )
    schedule = DraftLenSchedule.from_mapping(found.advice.draft_len_schedule)
    for row in found.advice.batches:
        assert schedule.draft_len(row.batch) == row.draft_len


def test_the_table_has_the_drafts_of_the_advice(found: EstimateReport) -> None:
    """On a DGX Spark the whole block of 9 loses at batch 2, and 3 drafts win: one answer."""
    pair = {"target": "gpt-oss-120b", "drafter": None, "acceptance_length": None}
    spark = estimate(config(**pair, arch="spark", batch="1,2,4"))
    for report in (found, spark):
        for best, row in zip(report.best_steps, report.advice.batches, strict=True):
            assert (best.batch, best.draft_len) == (row.batch, row.draft_len)
            assert best.speedup == pytest.approx(row.speedup)
            assert best.speedup >= 1
    assert spark.steps_of("DFlash")[1].speedup < 1 < spark.best_steps[1].speedup
    assert spark.advice.stops_paying_at is None


def test_time_to_first_token_grows_with_the_prompt() -> None:
    short, long = (estimate(config(context=each, batch="1")) for each in (1000, 32768))
    for report in (short, long):
        assert 0 < report.ttft_seconds["plain"] < report.ttft_seconds["DFlash"]
    ratio = long.ttft_seconds["plain"] / short.ttft_seconds["plain"]
    assert 32.768 < ratio < 4 * 32.768  # attention grows with the square
    one_chunk = read_inputs(config(context=512, batch="1"))
    time = one_chunk.roofline.time(
        one_chunk.pair.target_pass(512, 1), batch=1, context=256, drafts=False
    )
    assert one_chunk.ttft_seconds()["plain"] == pytest.approx(time.seconds)


def test_printed_lines_have_no_padding(capsys: pytest.CaptureFixture[str]) -> None:
    run_estimate(config())
    lines = capsys.readouterr().out.splitlines()
    assert all(line == line.rstrip() for line in lines)
    assert any("no bound from here: plain is at batch 1" in line for line in lines)
    assert any(line.startswith("time to first token: plain ") for line in lines)


@pytest.mark.parametrize("context", [40961, 131072])
def test_a_context_beyond_the_model_is_refused(context: int) -> None:
    pair = {"target": "Qwen3-8B", "drafter": None}
    words = (
        f"--context {context} is more than 40960, the target's max_position_embeddings 40960"
    )
    with pytest.raises(UsageError, match=words):
        estimate(config(**pair, context=context))
    assert estimate(config(**pair, context=40960, batch="1")).context == 40960


def test_hopeless_drafts_are_switched_off() -> None:
    off = estimate(config(acceptance_length="1.02"))
    assert [row.draft_len for row in off.advice.batches] == [0, 0, 0]
    assert off.advice.stops_paying_at == 1
    assert list(off.best_block_sizes.values()) == [1, 1, 1]
    assert set(off.advice.draft_len_schedule.values()) == {0}


def test_estimate_json_is_as_declared(found: EstimateReport) -> None:
    data = json.loads(json.dumps(asdict(found)))
    assert check(data, EstimateReport) == []
    steps = {(row["way"], row["batch"]): row for row in data["steps"]}
    assert len(steps) == 9
    for row in steps.values():
        assert sum(row["seconds_by_limit"].values()) == pytest.approx(row["step_seconds"])
        assert row["limited_by"] == max(
            row["seconds_by_limit"], key=row["seconds_by_limit"].get
        )
    assert steps["plain", 16]["speedup"] == 1.0
    assert check(data | {"more": 1}, EstimateReport) != []


def test_estimate_leaves_out_batches_that_do_not_fit() -> None:
    """Qwen3-8B keeps 164 KiB a position with its drafter: 64 sequences of 16384 are 176 GB, and a
    B200 has 180.
    """
    pair = {"target": "Qwen3-8B", "drafter": "Qwen3-8B-DFlash-b16", "context": 16384}
    found = estimate(config(**pair, batch="32,64"))
    assert [step.batch for step in found.steps_of("plain")] == [32]
    assert found.left_out == [64]
    with pytest.raises(UsageError, match="1 x B200 have 180 GB, and batch 64 needs 195 GB"):
        estimate(config(**pair, batch="64"))


def test_estimate_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    files = {"json": tmp_path / "out.json", "plot": tmp_path / "out.svg"}
    run_estimate(config(batch="1,8", gpus=2, runtime="serving", **files))
    out = capsys.readouterr().out
    for text in (
        "τ of 7 drafts: 3.5 (--acceptance-length)",
        "32 experts, 4 a token",
        "2 GPUs share every layer",
        "4 µs that each kernel",
    ):
        assert text in out.replace("\n", " ")
    assert "draft_len_schedule" in out
    assert json.loads(files["json"].read_text())["gpus"] == 2
    assert "tokens/s per user" in files["plot"].read_text()


@pytest.mark.parametrize(
    ("name", "words"),
    [("x.foo", r"ends with one of .*\.svg"), ("x", "ends with one of"), ("", "folder")],
)
def test_plot_of_unknown_format_is_refused_before_the_work(
    name: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("trtllm_dflash.estimate.run.estimate", pytest.fail)
    with pytest.raises(UsageError, match=f"--plot .*{words}"):
        run_estimate(config(plot=tmp_path / name))
    assert list(tmp_path.iterdir()) == []


def test_estimate_prints_names_like_markup_as_they_are(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    target = tiny_target(tmp_path / "[" / "x]", "qwen3")
    drafter = tiny_drafter(tmp_path / "drafter", target)
    run_estimate(
        config(target=str(target), drafter=str(drafter), batch="1", acceptance_length="2")
    )
    assert capsys.readouterr().out.startswith(f"{target} with {drafter} on ")


def test_estimate_flags_are_commands_of_their_own() -> None:
    """`profile --estimate` needs no engine, and says what it needs."""
    runner = CliRunner()
    done = runner.invoke(main, ["profile", "--estimate", "--target", "gpt-oss-20b"])
    assert done.exit_code == 2
    assert "give --arch ARCH|GPU, such as b200" in done.output
    pair = ["--target", "Qwen3-4B", "--drafter", "Qwen3-4B-DFlash-b16"]
    done = runner.invoke(
        main, ["profile", "--estimate", *pair, "--arch", "sm120", "--batch", "1"]
    )
    assert done.exit_code == 0
    assert "draft_len_schedule" in done.output
    assert (
        "published" in runner.invoke(main, ["profile", "--validate-estimate", "--help"]).output
    )


@pytest.mark.parametrize(
    ("arch", "gpu", "wanted"),
    [
        ("sm120", "5090", "RTX 5090"),
        ("sm120", None, "RTX PRO 6000 Blackwell"),
        ("5090", None, "RTX 5090"),
        ("SM_100", "gb200", "GB200"),
        ("spark", None, "GB10 (DGX Spark)"),
        (None, "pro 6000", "RTX PRO 6000 Blackwell"),
        ("b200", "gb200", "GB200"),
    ],
)
def test_a_gpu_is_known_by_what_people_type(
    arch: str | None, gpu: str | None, wanted: str
) -> None:
    assert config(arch=arch, gpu=gpu).device.name == wanted


@pytest.mark.parametrize(
    ("arch", "gpu", "words"),
    [
        ("sm120", "rtx", "--gpu 'rtx' fits RTX PRO 6000 Blackwell, RTX 5090"),
        ("sm120", "b200", "--gpu 'b200' is sm100, and not sm120"),
        ("rtx 3080", None, "--arch 'rtx 3080': the table has no figures of it. Of sm86"),
        ("cpu", None, "no GPU of it is in the table"),
        ("blackwel", None, "fits sm100, sm103, sm120, sm121"),
    ],
)
def test_an_unclear_gpu_is_refused(arch: str, gpu: str | None, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        config(arch=arch, gpu=gpu)
    assert words in str(caught.value)


def test_published_acceptance_length_is_the_default() -> None:
    found = read_inputs(config(acceptance_length=None, batch="1"))
    assert acceptance_length(found.shares, 7) == pytest.approx(4.53)
    assert "table 11" in found.acceptance_source


def test_listed_name_brings_its_drafter() -> None:
    asked = config(
        target="qwen3-coder-30b-a3b", drafter=None, acceptance_length=None, batch="1"
    )
    assert estimate(asked).drafter == "z-lab/Qwen3-Coder-30B-A3B-DFlash"
    target = read_inputs(asked).pair.target
    assert str(target.directory) == "Qwen/Qwen3-Coder-30B-A3B-Instruct"


@pytest.mark.slow
def test_every_listed_pair_that_builds_is_estimated() -> None:
    """By its name alone; the others are refused as `build` does."""
    for status in list_support():
        asked = config(
            target=status.pair.name, drafter=None, batch="1", acceptance_length="2", gpus=8
        )
        if status.archs and status.pair.drafter.has_sizes:
            assert estimate(asked).drafter == status.pair.drafter.repository
        else:
            with pytest.raises(DFlashError):
                estimate(asked)


def test_estimate_reads_models_in_directories(tmp_path: Path) -> None:
    """Their config.json is enough; a τ must be said."""
    target = tiny_target(tmp_path / "target", "qwen3")
    drafter = tiny_drafter(tmp_path / "drafter", target)
    for path in (*target.glob("*.safetensors"), *drafter.glob("*.safetensors")):
        path.unlink()
    pair = {"target": str(target), "drafter": str(drafter), "arch": "sm120"}
    assert read_inputs(config(**pair, acceptance_length="2")).roofline.gpu.arch == "sm120"
    with pytest.raises(UsageError, match="--acceptance-length is needed"):
        estimate(config(**pair, acceptance_length=None))
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
        (
            {"gpu": "RTX 5090"},
            "--gpu 'RTX 5090' is sm120, and not sm100",
        ),
        ({"arch": "cpu"}, "--arch cpu: no GPU of it is in the table"),
        ({"eagle": "60,7,10"}, "--eagle '60,7,10' is no TOKENS,DEPTH,BRANCHES,TAU"),
        ({"eagle": "60,7,10,9"}, "that yields 1 to depth"),
        (
            {"target": "gpt-5"},
            "--target gpt-5: neither a directory nor a target of `dflash-trt list`",
        ),
        (
            {"target": "gpt-oss-120"},
            "`dflash-trt list`; the nearest are gpt-oss-120b, gpt-oss-20b",
        ),
        (
            {"drafter": "x"},
            "--drafter x: neither a directory nor a drafter of `dflash-trt list`",
        ),
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
        ({"acceptance_length": "9"}, "--acceptance-length 9.0 is impossible"),
    ],
)
def test_estimate_refuses_impossible_options(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(UsageError, match=re.escape(problem)):
        estimate(config(**changes))
