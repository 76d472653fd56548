"""dflash-trt eval: tables, JSON, exit codes and refusals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from tests.evaluate.conftest import Evaluate
from tests.fixtures.quantized import quantized_copy
from tests.fixtures.tiny_models import tiny_drafter, tiny_target
from trtllm_dflash.cli import main
from trtllm_dflash.engine_dir import manifest
from trtllm_dflash.evaluate.logits_session import LogitsSession


def changed_copy(
    engine: Path, directory: Path, name: str, change: Callable[[str], str] | None
) -> Path:
    """Copy an engine with another file `name`, or without it, and a manifest that lists it."""
    shutil.copytree(engine, directory)
    if change is None:
        (directory / name).unlink()
    else:
        (directory / name).write_text(change((directory / name).read_text()))
    facts = {
        key: value
        for key, value in manifest.load(engine).items()
        if key not in {"schema", "created", "files"}
    }
    manifest.write(directory, facts)
    return directory


def test_eval_prints_tables(run_eval: Evaluate, engine: Path, other_engine: Path) -> None:
    result = run_eval(engine, "--against", other_engine)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].endswith("text.txt in 3 windows")
    assert f"engine   {engine}" in lines
    assert f"against  {other_engine}" in lines
    rows = {line.split("  ")[0].strip(): line for line in lines}
    assert rows["weights"].split()[1:] == ["float32", "float32"]
    assert rows["drafter"].split()[1:] == ["float32", "none"]
    assert rows["KV caches"].split()[2:] == ["float32", "float32"]
    assert (
        len(rows["perplexity"].split()) == 2
    )  # the later of two rows of that name: the increase
    assert "not measured: give --prompts" in rows["τ"]
    assert "no drafts" in rows["τ"]
    assert "positions" in rows["top-1 agreement"]
    assert "nats on average" in rows["KL divergence"]
    assert "model.layers." in rows["down_proj"]
    assert "lm_head" in rows["lm_head"]


def test_eval_json_has_results_and_provenance(
    run_eval: Evaluate, engine: Path, other_engine: Path, tmp_path: Path
) -> None:
    prompts, report = tmp_path / "prompts.txt", tmp_path / "report.json"
    prompts.write_text("hello\nworld\n")
    options = ("--prompts", prompts, "--max-tokens", "12", "--json", report, "--max-kl", "100")
    result = run_eval(engine, "--against", other_engine, *options)
    assert result.exit_code == 0, result.stderr
    data = json.loads(report.read_text(), parse_constant=pytest.fail)
    assert data["schema"] == 2
    assert data["limits"] == {"max_kl": 100}
    assert data["failures"] == []
    assert (
        data["prompts"] | {"name": str(prompts), "count": 2, "max_tokens": 12, "chat": True}
        == data["prompts"]
    )
    assert data["engine"]["acceptance"]["acceptance_length"] >= 1
    assert data["against"]["acceptance"] is None
    assert data["engine"]["source"]["graph"] == manifest.load(engine)["graph"]
    assert data["engine"]["source"]["weights"][0]["model"] == "target"
    assert {"dflash-trt", "onnxruntime", "numpy"} <= data["versions"].keys()
    assert len(data["text"]["sha256"]) == 64
    assert len(data["comparison"]["linear_errors"]) == 36
    assert f"{data['engine']['perplexity']:.4f}" in result.stdout
    assert f"{data['engine']['acceptance']['acceptance_length']:.3f} (" in result.stdout


def test_eval_reads_the_builtin_text_by_default(engine: Path) -> None:
    result = CliRunner().invoke(
        main, ["eval", str(engine), "--num-threads", "1", "--text-tokens", "40"]
    )
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("read 40 tokens of prose.txt\n")


@pytest.mark.parametrize(
    ("limit", "kept", "missed"),
    [
        ("--min-top1", "0", "0.99"),
        ("--max-kl", "50", "0.001"),
        ("--max-perplexity-increase", "1e9", "-"),
    ],
)
def test_eval_fails_on_a_missed_limit(
    limit: str,
    kept: str,
    missed: str,
    run_eval: Evaluate,
    engine: Path,
    other_engine: Path,
    tmp_path: Path,
) -> None:
    assert run_eval(engine, "--against", other_engine, limit, kept).exit_code == 0
    pair = (engine, other_engine)
    if missed == "-":  # of two engines, one has the larger perplexity
        missed, report = "0", tmp_path / "report.json"
        run_eval(engine, "--against", other_engine, "--json", report)
        pair = (
            pair
            if json.loads(report.read_text())["comparison"]["perplexity_increase"] > 0
            else pair[::-1]
        )
    result = run_eval(
        pair[0], "--against", pair[1], limit, missed, "--json", tmp_path / "missed.json"
    )
    assert result.exit_code == 1
    assert f"{limit} {missed}" in result.stderr
    assert result.stderr.startswith("failed: ")
    assert "perplexity" in result.stdout  # the table all the same
    (failure,) = json.loads((tmp_path / "missed.json").read_text())["failures"]
    assert limit in failure


def test_eval_limits_acceptance_length_of_one_engine(
    run_eval: Evaluate, engine: Path, tmp_path: Path
) -> None:
    prompts, report = tmp_path / "prompts.txt", tmp_path / "report.json"
    prompts.write_text("hello\n")
    options = ("--prompts", prompts, "--max-tokens", "8", "--json", report)
    assert run_eval(engine, *options, "--min-acceptance-length", "1").exit_code == 0
    data = json.loads(report.read_text())
    assert data["limits"] == {"min_acceptance_length": 1}
    result = run_eval(engine, *options, "--min-acceptance-length", "99")
    assert result.exit_code == 1
    found = data["engine"]["acceptance"]["acceptance_length"]
    expected = f"failed: τ is {found:.6g}, below --min-acceptance-length 99"
    assert result.stderr.startswith(expected)


def test_eval_refuses_that_limit_without_prompts_or_drafter(
    run_eval: Evaluate, engine: Path, other_engine: Path, tmp_path: Path
) -> None:
    result = run_eval(engine, "--min-acceptance-length", "2")
    assert (result.exit_code, result.stdout) == (2, "")
    expected = (
        "--min-acceptance-length is a limit on τ, which is measured on prompts: give --prompts"
    )
    assert f"error: {expected} FILE" in result.stderr
    (tmp_path / "prompts.txt").write_text("hello\n")
    result = run_eval(
        other_engine, "--min-acceptance-length", "2", "--prompts", tmp_path / "prompts.txt"
    )
    assert (result.exit_code, result.stdout) == (2, "")
    assert (
        f"error: --min-acceptance-length: {other_engine} has no drafter, so it has no τ."
        in result.stderr
    )


def test_eval_shows_a_quantized_drafter_and_fp8_caches(
    run_eval: Evaluate,
    engine: Path,
    target: Path,
    build_cpu: Callable[..., Path],
    tmp_path: Path,
) -> None:
    quantized = quantized_copy(target, tmp_path / "target", "nvfp4", kv_cache=True)
    drafter = tiny_drafter(tmp_path / "drafter", target)
    fp8 = quantized_copy(drafter, tmp_path / "fp8", "fp8")
    report = tmp_path / "report.json"
    result = run_eval(build_cpu(quantized, fp8), "--against", engine, "--json", report)
    assert result.exit_code == 0, result.stderr
    rows = {
        line.split("   ")[0].strip(): line.split()[-2:]
        for line in result.stdout.splitlines()[:9]
    }
    assert rows["weights"] == ["NVFP4", "float32"]
    assert rows["drafter"] == ["FP8", "float32"]
    assert rows["KV caches"] == ["FP8", "float32"]
    data = json.loads(report.read_text())["engine"]
    assert (data["weights"], data["drafter"], data["kv_caches"]) == ("NVFP4", "FP8", "FP8")


def test_eval_passes_against_the_same_engine(run_eval: Evaluate, engine: Path) -> None:
    limits = ("--min-top1", "1", "--max-kl", "0", "--max-perplexity-increase", "0")
    assert run_eval(engine, "--against", engine, *limits).exit_code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--max-kl", "0.1"),
            "--max-kl is a limit on the difference from another engine: give --against",
        ),
        (
            ("--min-top1", "97", "--against", "x"),
            "--min-top1 is a share of all positions, 0 to 1, got 97.0",
        ),
        (
            ("--max-kl", "nan", "--against", "x"),
            "--max-kl is nan, expected a number of at least 0",
        ),
        (("--text-tokens", "1"), "--text-tokens is 1, expected an integer of at least 2"),
        (("--max-tokens", "1"), "--max-tokens is 1, expected an integer of at least 2"),
        (
            ("--json", "nowhere/report.json"),
            "--json nowhere/report.json: there is no folder nowhere",
        ),
        (
            ("--text", "nowhere.txt"),
            "--text nowhere.txt: cannot be read (No such file or directory).",
        ),
    ],
)
def test_eval_refuses_senseless_options(
    options: tuple[str, ...], message: str, run_eval: Evaluate, engine: Path
) -> None:
    result = run_eval(engine, *options)
    assert result.exit_code == 2
    assert f"error: {message}" in result.stderr


def test_eval_says_that_a_text_has_no_chat_format(run_eval: Evaluate, engine: Path) -> None:
    options = ("--text-tokens", "40", "--raw")
    result = run_eval(engine, *options)
    assert result.exit_code == 0, result.output
    assert "warning: --raw: no effect without --prompts or --messages" in result.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty. Give some pages"),
        (b" \n\t\n", "is empty. Give some pages"),
        (
            b"x",
            "1 tokens in it, of which 80 at a time fit the engine; predicting needs at least 2.",
        ),
        (b"caf\xe9", "byte 3 is not UTF-8. Save the file as UTF-8."),
    ],
)
def test_eval_refuses_useless_text(
    content: bytes, message: str, run_eval: Evaluate, engine: Path, text_file: Path
) -> None:
    text_file.write_bytes(content)
    result = run_eval(engine)
    assert result.exit_code == 2
    assert f"{text_file}" in result.stderr
    assert message in result.stderr


def test_eval_refuses_an_engine_for_a_gpu(
    run_eval: Evaluate, engine: Path, tmp_path: Path
) -> None:
    def for_gpu(text: str) -> str:
        data: dict[str, Any] = json.loads(text)
        data["build_config"] |= {
            "arch": "sm120",
            "backend": "tensorrt_rtx",
            "dtype": "bfloat16",
        }
        return json.dumps(data)

    gpu = changed_copy(engine, tmp_path / "gpu", "config.json", for_gpu)
    (gpu / "rank0.engine").touch()
    manifest.write(gpu, {})
    for arguments in ((gpu,), (engine, "--against", gpu)):
        result = run_eval(*arguments)
        assert result.exit_code == 1
        assert (
            f"error: {gpu}: this engine was built with tensorrt_rtx for sm120 and cannot run here:"
            in result.stderr
        )
        assert "with --arch cpu" in result.stderr


def test_eval_refuses_other_vocabularies_and_tokenizers(
    run_eval: Evaluate, engine: Path, build_cpu: Callable[..., Path], tmp_path: Path
) -> None:
    smaller = build_cpu(tiny_target(tmp_path / "smaller", tokenizer=True, vocab_size=96))
    result = run_eval(engine, "--against", smaller)
    assert result.exit_code == 2
    assert f"{engine} has a vocabulary of 97 tokens and {smaller} one of 96" in result.stderr
    swapped = changed_copy(
        engine,
        tmp_path / "swapped",
        "tokenizer.json",
        lambda text: text.replace('"T": 52', '"T": 53').replace('"U": 53', '"U": 52'),
    )
    result = run_eval(engine, "--against", swapped)
    assert result.exit_code == 2
    assert (
        f"{engine} and {swapped} have different tokenizers: they make different tokens of 'The"
        " night" in result.stderr
    )


def test_eval_refuses_other_chat_formats(
    run_eval: Evaluate, engine: Path, tmp_path: Path
) -> None:
    """The engines would answer different prompts."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("hello\n")
    other = changed_copy(
        engine,
        tmp_path / "other",
        "tokenizer_config.json",
        lambda text: text.replace("[assistant]", "[answer]"),
    )
    result = run_eval(engine, "--against", other, "--prompts", prompts)
    assert result.exit_code == 2
    assert "they make different tokens of 'hello'" in result.stderr
    assert (
        run_eval(
            engine, "--against", other, "--prompts", prompts, "--raw", "--max-tokens", "4"
        ).exit_code
        == 0
    )


def test_eval_without_a_tokenizer(run_eval: Evaluate, engine: Path, tmp_path: Path) -> None:
    mute = changed_copy(engine, tmp_path / "mute", "tokenizer.json", None)
    result = run_eval(mute)
    assert result.exit_code == 2
    assert (
        f"error: {mute}: this engine has no tokenizer.json, so it cannot read text."
        in result.stderr
    )
    assert run_eval(engine, "--against", mute).exit_code == 0


def test_eval_refuses_prompts_that_do_not_fit_early(
    run_eval: Evaluate, engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        LogitsSession, "__init__", lambda *_, **__: pytest.fail("the text was read")
    )
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("hello\n\n" + "x" * 200)
    result = run_eval(engine, "--prompts", prompts)
    assert result.exit_code == 2
    assert f"error: {prompts}, line 3: the prompt has 2" in result.stderr


def test_eval_refuses_a_damaged_engine(
    run_eval: Evaluate, engine: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(engine, damaged)
    with (damaged / "model.onnx").open("ab") as file:
        file.write(b"\0")
    result = run_eval(damaged)
    assert result.exit_code == 1
    assert f"error: {damaged} is not what its build wrote:\n  model.onnx" in result.stderr
    assert run_eval(tmp_path / "nothing").exit_code == 1


def test_eval_refuses_logits_that_are_not_finite(
    run_eval: Evaluate, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = LogitsSession.step

    def broken(self: LogitsSession, token_ids: Any) -> Any:
        outputs = step(self, token_ids)
        outputs["lm_head"][3, 5] = np.nan
        return outputs

    monkeypatch.setattr(LogitsSession, "step", broken)
    result = run_eval(engine)
    assert result.exit_code == 1
    assert "the logits after token 3 of the text are not finite numbers" in result.stderr
