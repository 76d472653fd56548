"""dflash-trt quantize: options from QuantizeConfig, usage errors, the summary."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from trtllm_dflash.checkpoint.formats import FORMATS, MXFP4
from trtllm_dflash.cli import main, quantize
from trtllm_dflash.options.quantize import KEEP_WEIGHTS, QuantizeConfig

Quantize = Callable[..., Result]


@pytest.fixture
def run(make_target: Callable[..., Path], tmp_path: Path) -> Quantize:
    """`run(*options)` quantizes the tiny target, which has a tokenizer, into tmp_path/q."""
    target = make_target("llama", tokenizer=True)

    def invoke(*options: str) -> Result:
        fixed = [
            "--target",
            str(target),
            "--output-dir",
            str(tmp_path / "q"),
            "--calib-size",
            "4",
        ]
        return CliRunner().invoke(main, ["quantize", *fixed, "--calib-seq-len", "24", *options])

    return invoke


def test_quantize_options_are_the_fields() -> None:
    options = {
        option.name: option
        for option in quantize.quantize.params
        if isinstance(option, click.Option)
    }
    for field in dataclasses.fields(QuantizeConfig):
        option = options[field.name]
        assert option.opts == [f"--{field.name.replace('_', '-')}"]
        assert option.help == field.metadata["help"]
        assert option.required == (field.default is dataclasses.MISSING)
        if not option.required:
            assert option.default == field.default
    assert isinstance(options["quant"].type, click.Choice)
    assert tuple(options["quant"].type.choices) == (*FORMATS, MXFP4.name, KEEP_WEIGHTS)


@pytest.mark.slow
def test_quantize_writes_a_checkpoint_real(run: Quantize, tmp_path: Path) -> None:
    """Calibrated with our own set."""
    pytest.importorskip("modelopt")
    result = run("--quant", "nvfp4", "--kv-cache-dtype", "fp8")
    assert result.exit_code == 0, result.stderr
    first, second = result.stdout.splitlines()
    assert first.startswith(f"checkpoint: {tmp_path / 'q'} (NVFP4, ")
    assert (
        second
        == f"next:       dflash-trt build --target {tmp_path / 'q'} --drafter DRAFTER --output-dir"
        " ENGINE"
    )
    for words in (
        "quantizing with:",
        "NVFP4: 4-bit weights and activations in blocks of 16",
        "scales for fp8",
        "4 sequences, 96 tokens of our own set",
        "of 96 calibration tokens",
        "peak memory",
    ):
        assert words in result.stderr
    assert "Inserted" not in result.stderr  # ModelOpt's own prints


@pytest.mark.slow
def test_quantize_with_the_drafter_real(
    run: Quantize,
    make_target: Callable[..., Path],
    make_drafter: Callable[..., Path],
    tmp_path: Path,
) -> None:
    pytest.importorskip("modelopt")
    pytest.importorskip("dflash")
    drafter = make_drafter(make_target("llama", tokenizer=True))
    result = run("--quant", "fp8", "--quantize-drafter", "--drafter", str(drafter))
    assert result.exit_code == 0, result.stderr
    assert f" --drafter {tmp_path / 'q' / 'drafter'} " in result.stdout
    assert "Loading weights" not in result.stderr
    assert (tmp_path / "q" / "drafter" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "Missing option '--quant'"),
        (("--quant", "int8"), "'int8' is not one of 'fp8', 'nvfp4', 'w4a16_nvfp4'"),
        (("--quant", "fp8", "--kv-cache-dtype", "int8"), "'int8' is not 'fp8'"),
        (
            ("--quant", "fp8", "--calib-size", "0"),
            "error: --calib-size is 0, expected an integer of at least 1",
        ),
        (
            ("--quant", "fp8", "--quantize-drafter"),
            "error: --quantize-drafter needs the drafter: give --drafter",
        ),
        (
            ("--quant", "fp8", "--drafter", "d"),
            "error: --drafter is for --quantize-drafter; a drafter that stays",
        ),
        (
            ("--quant", "fp8", "--calib-file", "none.jsonl"),
            "error: --calib-file none.jsonl: cannot be read",
        ),
    ],
)
def test_quantize_refuses_wrong_options(
    run: Quantize, options: tuple[str, ...], words: str
) -> None:
    result = run(*options)
    assert result.exit_code == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_quantize_refuses_a_missing_target(tmp_path: Path) -> None:
    options = [
        "--target",
        str(tmp_path / "none"),
        "--output-dir",
        str(tmp_path / "q"),
        "--quant",
        "fp8",
    ]
    result = CliRunner().invoke(main, ["quantize", *options])
    assert result.exit_code == 1
    assert "there is no such directory" in result.stderr


def test_every_option_of_quantize_has_help() -> None:
    for parameter in quantize.quantize.params:
        assert isinstance(parameter, click.Option)
        assert parameter.help
