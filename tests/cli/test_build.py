"""dflash-trt build: options from BuildConfig, usage errors, the summary."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from trtllm_dflash.cli import build, main
from trtllm_dflash.engine_dir.config import EngineConfig
from trtllm_dflash.hardware.archs import ARCHS
from trtllm_dflash.options.build import BuildConfig

Build = Callable[..., Result]


@pytest.fixture
def run(
    make_target: Callable[..., Path], make_drafter: Callable[..., Path], tmp_path: Path
) -> Build:
    """`run(*options)` builds the tiny target into tmp_path/engine; `drafter=True` adds its
    drafter.
    """
    target = make_target("llama")

    def invoke(*options: str, drafter: bool = False) -> Result:
        pair = ["--drafter", str(make_drafter(target))] if drafter else []
        fixed = [
            "--target",
            str(target),
            *pair,
            "--output-dir",
            str(tmp_path / "engine"),
            "--max-seq-len",
            "64",
        ]
        return CliRunner().invoke(main, ["build", *fixed, *options])

    return invoke


def test_build_options_are_the_fields() -> None:
    options = {
        option.name: option for option in build.build.params if isinstance(option, click.Option)
    }
    for field in dataclasses.fields(BuildConfig):
        option = options[field.name]
        assert option.opts == [f"--{field.name.replace('_', '-')}"]
        is_switch = field.name in ("plugins", "gather_generation_logits")
        assert option.secondary_opts == ([option.opts[0].replace("--", "--no-", 1)] * is_switch)
        assert option.help == field.metadata["help"]
        has_default = field.default is not dataclasses.MISSING
        assert option.required == (not has_default and field.name != "output_dir")
        if has_default:
            assert option.default == field.default
    assert set(ARCHS) <= set(re.findall(r"\w+", options["arch"].help or ""))


def test_build_writes_an_engine_real(run: Build, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    result = run("--draft-len", "2", drafter=True)
    assert result.exit_code == 0, result.stderr
    engine = tmp_path / "engine"
    first, second = result.stdout.splitlines()
    assert first.startswith(
        f"engine: {engine} (cpu, weights FP32, caches FP32, DFlash with 2 drafts a step, "
    )
    assert second == f"next:   dflash-trt inspect {engine}"  # its prompts are token ids
    assert "building the engine with:" in result.stderr
    assert "peak memory" in result.stderr
    assert json.loads((engine / "config.json").read_text())["dflash"]["draft_len"] == 2


def test_as_many_drafts_as_pay_are_the_default_real(run: Build, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    result = run(drafter=True)
    assert result.exit_code == 0, result.stderr
    assert "DFlash with as many drafts as pay a step, " in result.stdout
    config = json.loads((tmp_path / "engine" / "config.json").read_text())
    assert config["dflash"]["draft_len"] == config["build_config"]["draft_len"] == "auto"
    loaded = EngineConfig.load(tmp_path / "engine")
    assert (loaded.own_draft_len, loaded.draft_len) == ("auto", 3)


def test_build_without_a_drafter_real(run: Build, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    result = run("--no-drafter")
    assert result.exit_code == 0, result.stderr
    assert (
        f"engine: {tmp_path / 'engine'} (cpu, weights FP32, caches FP32, plain, "
        in result.stdout
    )


def test_dry_run_shows_the_configuration_and_writes_nothing(run: Build, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    result = run("--dry-run", drafter=True)
    assert result.exit_code == 0, result.stderr
    drafts = "4 tokens (trained with 4); run verifies as many drafts as pay"
    for words in ("would build:", drafts, "tensors", "a slot", "128 rows", "memory:"):
        assert words in result.stdout
    assert not (tmp_path / "engine").exists()


@pytest.mark.parametrize(
    ("options", "drafter", "words"),
    [
        (
            (),
            False,
            "error: give --drafter DIR|NAME, or pass --no-drafter to build a plain engine",
        ),
        (
            ("--no-drafter",),
            True,
            "error: give either --drafter DIR|NAME or --no-drafter, not both",
        ),
        (
            ("--no-drafter", "--arch", "sm70"),
            False,
            "--arch 'sm70' is no known architecture or GPU; did you mean sm90",
        ),
        (
            ("--no-drafter", "--max-batch-size", "0"),
            False,
            "--max-batch-size is 0, expected an integer from 1 to 65536",
        ),
        (("--no-drafter", "--max-batch-size", "x"), False, "'x' is not a valid integer"),
        (
            ("--block-size", "9"),
            True,
            "error: --block-size 9 is more than the 4 that the drafter was trained with",
        ),
        (
            ("--no-drafter", "--plugins"),
            False,
            "error: --plugins are CUDA kernels, and --arch cpu is no GPU",
        ),
        (
            ("--no-drafter", "--dtype", "bfloat16"),
            False,
            "error: --dtype bfloat16 cannot be built for --arch cpu",
        ),
    ],
)
def test_build_refuses_wrong_options(
    run: Build, options: tuple[str, ...], drafter: bool, words: str
) -> None:
    result = run(*options, drafter=drafter)
    assert result.exit_code == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_build_needs_a_target() -> None:
    result = CliRunner().invoke(main, ["build", "--output-dir", "x", "--no-drafter"])
    assert result.exit_code == 2
    assert "Missing option '--target'" in result.stderr


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (
            "foo",
            (
                "error: --target foo: neither a directory nor a target of `dflash-trt list`. For"
                " another model"
            ),
        ),
        (
            "openai/gpt-oss-120bb",
            "neither a directory nor a target of `dflash-trt list`; the nearest are gpt-oss-120b",
        ),
    ],
)
def test_build_refuses_an_unknown_target(target: str, words: str) -> None:
    result = CliRunner().invoke(main, ["build", "--target", target, "--output-dir", "x"])
    assert result.exit_code == 2
    assert words in result.stderr
    assert "--no-drafter for a plain engine" in result.stderr


def test_dry_run_refuses_an_impossible_output(run: Build, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = run("--no-drafter", "--dry-run", "--output-dir", str(tmp_path / "file" / "x"))
    assert result.exit_code == 2
    assert "file is a file, and nothing can be in it" in result.stderr


def test_build_refuses_an_arch_without_a_compiler(run: Build) -> None:
    result = run("--no-drafter", "--arch", "sm100")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: --arch sm100 (B200, GB200) cannot be built here: ")
