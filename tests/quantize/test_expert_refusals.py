"""Refusals of targets with experts; each names the part, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("modelopt")

import torch

from tests.fixtures.quantized import read_tensors
from tests.fixtures.tiny_models import write_safetensors
from tests.fixtures.tiny_moe import tiny_gpt_oss, tiny_qwen3_moe
from trtllm_dflash.errors import CheckpointError, DFlashError, QuantizeError
from trtllm_dflash.options.quantize import QuantizeConfig
from trtllm_dflash.quantize import pipeline, quantize_target

pytestmark = pytest.mark.slow

EXPERT = "model.layers.1.mlp.experts.4"
FUSED = "model.layers.1.mlp.experts.gate_up_proj"
Ask = Callable[..., QuantizeConfig]


@pytest.fixture
def ask(ids_file: Path, tmp_path: Path) -> Iterator[Ask]:
    """`ask(changes, form="nvfp4", fused=False, dtype="BF16")`: to quantize a Qwen3-MoE of which
    some tensors, or slices of them, have a value of their own.

    After the test there is no output, and no directory that was being written.
    """

    def make(
        changes: dict[str, Any],
        form: str = "nvfp4",
        *,
        fused: bool = False,
        dtype: str = "BF16",
    ) -> QuantizeConfig:
        source = tiny_qwen3_moe(tmp_path / "source", fused=fused, sizes={"expert_size": 32})
        change(source, changes, dtype)
        return QuantizeConfig(str(source), tmp_path / "out", form, calib_file=ids_file)

    yield make
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def change(source: Path, changes: dict[str, Any], dtype: str) -> None:
    tensors = {
        name: np.array(array, np.float32)
        for name, array in read_tensors(source / "model.safetensors").items()
    }
    for name, (place, value) in changes.items():
        tensors[name][place] = value
    write_safetensors(source / "model.safetensors", tensors, dtype)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.0, "tensor {} is zero throughout, so it has no scale"),
        (np.nan, "tensor {} has nan at index"),
    ],
)
def test_a_weight_of_one_expert(fused: bool, value: float, words: str, ask: Ask) -> None:
    """Its own name is said, also where it lies in a tensor of all."""
    changes = {f"{EXPERT}.up_proj.weight": (..., value)}
    if fused:
        changes = {FUSED: (np.s_[4, 32:], value)}
    with pytest.raises(CheckpointError, match=words.format(f"{EXPERT}.up_proj.weight")):
        pipeline.quantize(ask(changes, fused=fused))


@pytest.mark.parametrize("form", ["fp8", "nvfp4"])
def test_inputs_that_are_always_zero(form: str, ask: Ask) -> None:
    changes = {"model.layers.1.post_attention_layernorm.weight": (..., 0.0)}
    with pytest.raises(QuantizeError) as caught:
        pipeline.quantize(ask(changes, form))
    assert str(caught.value) == (
        "model.layers.1.mlp.experts.gate_up_proj: their input was zero, or not there, throughout"
        " the calibration text, so it has no scale. Give other text with --calib-file."
    )


def test_experts_that_overflow_f16(ask: Ask) -> None:
    """torch's functions are its own again, so that the next model goes through no quantizer."""
    linear = torch.nn.functional.linear
    changes = {
        f"model.layers.1.mlp.experts.{j}.up_proj.weight": (..., 60000.0) for j in range(7)
    }
    with pytest.raises(
        QuantizeError,
        match=r"model.layers.1: the values in it are not finite .*convert it to BF16",
    ):
        pipeline.quantize(ask(changes, dtype="F16"))
    assert torch.nn.functional.linear is linear


def test_an_interrupt(ask: Ask) -> None:
    def interrupt(phase: str, done: int, total: int) -> None:
        if phase == quantize_target.PHASE and done > total / 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit):
        pipeline.quantize(ask({}), progress=interrupt)


def test_a_full_disk(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trtllm_dflash.quantize.writer.write_file", fail)
    with pytest.raises(DFlashError, match=r"out was not written: the disk of .* is full"):
        pipeline.quantize(ask({}))


def test_a_damaged_gpt_oss(ids_file: Path, tmp_path: Path) -> None:
    source = tiny_gpt_oss(tmp_path / "source", mxfp4=False, dtype="BF16")
    change(source, {FUSED: (np.s_[2, 5, 7], np.inf)}, "BF16")
    asked = QuantizeConfig(str(source), tmp_path / "out", "mxfp4", calib_file=ids_file)
    with pytest.raises(CheckpointError, match=rf"tensor {FUSED} has inf at index \[2, 5, 7\]"):
        pipeline.quantize(asked)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
