"""Refusals of `quantize`; no failure leaves files or changes others."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("modelopt")

from tests.fixtures.tiny_models import TARGET, tiny_target, write_safetensors
from trtllm_dflash.checkpoint.index import read_all_tensor_infos
from trtllm_dflash.checkpoint.safetensors import read_tensor_infos
from trtllm_dflash.errors import BuildError, CheckpointError, QuantizeError, UsageError
from trtllm_dflash.options.quantize import QuantizeConfig
from trtllm_dflash.quantize import pipeline, quantize_target, requirements
from trtllm_dflash.quantize.provenance import check_output

pytestmark = pytest.mark.slow

Config = Callable[..., QuantizeConfig]


def changed_target(directory: Path, changes: dict[str, Any], dtype: str = "F32") -> str:
    """Make a tiny Llama with some tensors replaced; a number fills the tensor."""
    tiny_target(directory, "llama", dtype=dtype)
    path = directory / "model.safetensors"
    tensors = {
        name: np.array(info.array(), np.float32)
        for name, info in read_tensor_infos(path).items()
    }
    for name, value in changes.items():
        tensors[name][...] = value
    write_safetensors(path, tensors, dtype)
    return str(directory)


@pytest.fixture(autouse=True)
def _leaves_nothing(tmp_path: Path) -> Any:
    """After every test: no output, and no directory that was being written."""
    yield
    assert [path.name for path in tmp_path.iterdir() if "quantized" in path.name] == []


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"quant": "int4"},
            "--quant 'int4' is not known; choose one of fp8, nvfp4, w4a16_nvfp4, mxfp4, none",
        ),
        ({"quant": "none"}, "--quant none changes nothing without --kv-cache-dtype fp8"),
        (
            {"quant": "none", "kv_cache_dtype": "fp8", "drafter": "d"},
            (
                "--quant none leaves nothing to quantize in a drafter, whose caches stay as they"
                " are; give --quant fp8"
            ),
        ),
        ({"kv_cache_dtype": "int8"}, "--kv-cache-dtype 'int8' is not known; choose one of fp8"),
        ({"device": "tpu"}, "--device 'tpu' is not known; choose one of auto, cpu, cuda"),
        ({"calib_size": 0}, "--calib-size is 0, expected an integer of at least 1"),
        (
            {"calib_seq_len": 1 << 21},
            "--calib-seq-len is 2097152, expected an integer from 1 to 1048576",
        ),
    ],
)
def test_quantize_refuses_wrong_options(
    values: dict[str, Any], words: str, config: Config
) -> None:
    with pytest.raises(UsageError) as caught:
        config(**values)
    assert str(caught.value).startswith(words)


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        (("modelopt",), "there is no module modelopt: "),
        (
            ("torch", "modelopt", "requests"),
            "there is no module torch and no modelopt and no requests: ",
        ),
    ],
)
def test_quantize_refuses_missing_packages(
    missing: tuple[str, ...], words: str, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        requirements, "find_spec", lambda name: None if name in missing else object()
    )
    with pytest.raises(QuantizeError) as caught:
        pipeline.quantize(config())
    assert (
        str(caught.value) == f"quantizing needs ModelOpt and torch, and here {words}pip install"
        " '.[quantize]' in the dflash-trt repository"
    )


def test_quantize_refuses_a_missing_reference_package(
    config: Config, make_drafter: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        requirements, "find_spec", lambda name: None if name == "dflash" else object()
    )
    drafter = make_drafter(Path(config().target))
    with pytest.raises(
        QuantizeError, match=r"--quantize-drafter .*pip install --no-deps dflash==0.1.0"
    ):
        pipeline.quantize(config(drafter=str(drafter)))


def test_quantize_refuses_a_missing_gpu(config: Config) -> None:
    with pytest.raises(QuantizeError, match="--device cuda: torch sees no GPU here"):
        pipeline.quantize(config(device="cuda"))


@pytest.mark.parametrize("form", ["nvfp4", "w4a16_nvfp4"])
def test_quantize_refuses_inputs_not_a_multiple_of_16(
    form: str, config: Config, make_target: Callable[..., Path]
) -> None:
    narrow = make_target("llama", head_dim=14)
    with pytest.raises(CheckpointError) as caught:
        pipeline.quantize(config(target=str(narrow), quant=form))
    assert str(caught.value).startswith(
        f"target {narrow}: --quant {form} has a scale for every 16 inputs of a linear, so their"
        " number must be a multiple of 16: model.layers.0.self_attn.o_proj has 56, "
    )
    assert str(caught.value).endswith("and 1 more. Use --quant fp8.")


def test_quantize_takes_the_same_inputs_in_fp8(
    config: Config, make_target: Callable[..., Path]
) -> None:
    report = pipeline.quantize(config(target=str(make_target("llama", head_dim=14))))
    shutil.rmtree(report.directory)


def test_quantize_refuses_such_a_drafter_first(
    config: Config, make_drafter: Callable[..., Path]
) -> None:
    drafter = make_drafter(Path(config().target))  # 9 heads of 8: o_proj reads 72
    with pytest.raises(
        CheckpointError, match=r"drafter .*layers.0.self_attn.o_proj has 72.*Use --quant fp8"
    ):
        pipeline.quantize(config(drafter=str(drafter), quant="nvfp4"))


def test_quantize_refuses_a_quantized_target(
    config: Config, quantized: Callable[..., Path]
) -> None:
    with pytest.raises(
        CheckpointError, match=r"it is already quantized \(FP8 and F32\).*Give the unquantized"
    ):
        pipeline.quantize(config(target=str(quantized("llama", "fp8"))))


def test_quantize_refuses_to_drop_cache_scales(
    config: Config, quantized: Callable[..., Path]
) -> None:
    """It failed after all the work: scales in the output, and no word of them in its
    configuration.
    """
    target = str(quantized("llama", "none", "fp8"))
    with pytest.raises(
        CheckpointError, match=r"its KV caches are FP8, .*Add --kv-cache-dtype fp8"
    ):
        pipeline.quantize(config(target=target))
    report = pipeline.quantize(config(target=target, kv_cache_dtype="fp8"))
    again, at_once = (
        read_all_tensor_infos(path)
        for path in (report.directory, quantized("llama", "fp8", "fp8"))
    )
    assert again.keys() == at_once.keys()
    assert all(
        np.array_equal(info.array(), at_once[name].array()) for name, info in again.items()
    )
    shutil.rmtree(report.directory)


def test_quantize_refuses_an_empty_calibration_file(config: Config, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UsageError, match=r"empty\.jsonl is empty"):
        pipeline.quantize(config(calib_file=tmp_path / "empty.jsonl"))


def test_quantize_refuses_text_without_a_tokenizer(config: Config) -> None:
    with pytest.raises(UsageError, match=r"the target has no tokenizer\.json"):
        pipeline.quantize(config(calib_file=None))


@pytest.mark.parametrize("form", ["fp8", "nvfp4"])
def test_quantize_refuses_a_weight_of_zeros(form: str, config: Config, tmp_path: Path) -> None:
    name = "model.layers.3.mlp.up_proj.weight"
    zero = changed_target(tmp_path / "zero", {name: 0.0})
    with pytest.raises(CheckpointError) as caught:
        pipeline.quantize(config(target=zero, quant=form))
    assert (
        str(caught.value)
        == f"{zero}/model.safetensors: tensor {name} is zero throughout, so it has no scale, and"
        " ModelOpt would write NaN. Get an intact copy of the checkpoint."
    )


def test_quantize_refuses_a_weight_that_is_not_finite(config: Config, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    broken = changed_target(tmp_path / "broken", {name: np.nan})
    with pytest.raises(CheckpointError, match=rf"tensor {name} has nan at index \[0, 0\]"):
        pipeline.quantize(config(target=broken))


@pytest.mark.parametrize("form", ["fp8", "nvfp4"])
def test_quantize_refuses_an_input_that_is_always_zero(
    form: str, config: Config, tmp_path: Path
) -> None:
    dead = changed_target(
        tmp_path / "dead", {"model.layers.2.post_attention_layernorm.weight": 0.0}
    )
    with pytest.raises(QuantizeError) as caught:
        pipeline.quantize(config(target=dead, quant=form))
    assert (
        str(caught.value)
        == "model.layers.2.mlp.gate_proj: its input was zero, or not there, throughout the"
        " calibration text, so it has no scale. Give other text with --calib-file."
    )


def test_quantize_refuses_activations_that_overflow_f16(config: Config, tmp_path: Path) -> None:
    hot = changed_target(
        tmp_path / "hot", {"model.layers.1.mlp.up_proj.weight": 60000.0}, "F16"
    )
    with pytest.raises(
        QuantizeError,
        match=r"model.layers.1: the values in it are not finite .*convert it to BF16",
    ):
        pipeline.quantize(config(target=hot))


def test_quantize_leaves_nothing_after_a_late_failure(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pipeline, "copy_tokenizer_files", fail)
    with pytest.raises(BuildError, match=r"quantized was not written: the disk of .* is full"):
        pipeline.quantize(config())


def test_quantize_leaves_nothing_after_an_interrupt(config: Config) -> None:
    def interrupt(phase: str, done: int, total: int) -> None:
        if phase == quantize_target.PHASE and done > total / 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit):
        pipeline.quantize(config(), progress=interrupt)


def test_quantize_refuses_too_little_disk(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(
        Exception, match=r"the checkpoint needs about .* and the disk of .* has 1.0 kB free"
    ):
        pipeline.quantize(config())


class TestOverwrite:
    """--overwrite replaces what quantize wrote, as a whole, and nothing else."""

    @pytest.fixture
    def old(self, quantized: Callable[..., Path], tmp_path: Path) -> Path:
        return Path(shutil.copytree(quantized("llama", "w4a16_nvfp4"), tmp_path / "old"))

    def test_overwrite_is_needed(self, config: Config, old: Path) -> None:
        with pytest.raises(
            UsageError,
            match="is not empty; give another, or --overwrite to replace a checkpoint",
        ):
            pipeline.quantize(config(output_dir=old))

    def test_overwrite_replaces(self, config: Config, old: Path) -> None:
        pipeline.quantize(config(output_dir=old), overwrite=True)
        assert (
            json.loads((old / "hf_quant_config.json").read_text())["quantization"]["quant_algo"]
            == "FP8"
        )

    def test_overwrite_keeps_the_old_after_a_failure(
        self, config: Config, old: Path, tmp_path: Path
    ) -> None:
        before = {path.name: path.read_bytes() for path in old.iterdir()}
        zero = changed_target(
            tmp_path / "zero", {f"model.layers.{TARGET['layers'] - 1}.mlp.up_proj.weight": 0.0}
        )
        with pytest.raises(CheckpointError):
            pipeline.quantize(config(target=zero, output_dir=old), overwrite=True)
        assert {path.name: path.read_bytes() for path in old.iterdir()} == before
        assert sorted(path.name for path in tmp_path.iterdir()) == ["old", "zero"]

    def test_overwrite_refuses_other_files(self, old: Path) -> None:
        (old / "drafter").mkdir()
        (old / "drafter" / "notes.txt").write_text("mine")
        with pytest.raises(
            UsageError,
            match=r"also holds files that do not belong to it: drafter/notes.txt. Move them away",
        ):
            check_output(old, overwrite=True)

    @pytest.mark.parametrize("record", [None, "{}", "[]", '{"schema": 9, "files": {}}', "{"])
    def test_overwrite_refuses_other_directories(self, old: Path, record: str | None) -> None:
        path = old / "dflash_quantize.json"
        path.unlink() if record is None else path.write_text(record)
        with pytest.raises(
            UsageError, match=r"nothing else is ever deleted: .* has no dflash_quantize.json"
        ):
            check_output(old, overwrite=True)

    def test_overwrite_refuses_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(UsageError, match="file is a file; give the name of a directory"):
            check_output(tmp_path / "file", overwrite=True)

    def test_overwrite_accepts_an_empty_directory(self, tmp_path: Path) -> None:
        check_output(tmp_path, overwrite=False)
