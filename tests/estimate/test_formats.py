"""The formats of an estimate: those of the checkpoints, or those of the options."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.quantized import quant_configs
from trtllm_dflash.builder.config_models import find_target
from trtllm_dflash.catalog.gpus import GPUS
from trtllm_dflash.catalog.pairs import pair_of
from trtllm_dflash.catalog.published import drafter_json, target_json
from trtllm_dflash.checkpoint.formats import FORMATS
from trtllm_dflash.checkpoint.from_config import checkpoint_of_config
from trtllm_dflash.errors import ConfigError, UsageError
from trtllm_dflash.estimate.roofline import peak_flops
from trtllm_dflash.estimate.run import EstimateInputs, read_inputs
from trtllm_dflash.options.estimate import EstimateConfig

Stored = Callable[..., Path]
USUAL = {"linears": "bf16", "experts": "bf16", "head": "bf16", "drafter": "bf16"}


@pytest.fixture
def stored(tmp_path: Path) -> Stored:
    """`stored(name, half, format)`: a directory with one half's published config.json, quantized as
    ModelOpt does.
    """

    def make(
        name: str,
        half: str,
        number: str,
        *,
        exclude: tuple[str, ...] = ("lm_head",),
        kv_cache: bool = False,
    ) -> Path:
        pair, directory = pair_of(name), tmp_path / half
        assert pair is not None
        directory.mkdir()
        original, _ = quant_configs(number, None, exclude, kv_cache=kv_cache)
        config = target_json(pair.target) if half == "target" else drafter_json(pair.drafter)
        (directory / "config.json").write_text(json.dumps(config))
        (directory / "hf_quant_config.json").write_text(json.dumps(original))
        return directory

    return make


def of(target: str | Path, arch: str = "sm100", **options: Any) -> EstimateInputs:
    settings = {"batch": "1", "acceptance_length": "3"} | options
    return read_inputs(EstimateConfig(target=str(target), arch=arch, **settings))


def test_checkpoint_is_estimated_as_it_is_stored(stored: Stored) -> None:
    """The same as asking for it of the original, scales for caches included.

    Only hf_quant_config.json says it.
    """
    directory = stored("Qwen3-8B", "target", "nvfp4", kv_cache=True)
    drafter = "Qwen3-8B-DFlash-b16"
    found, asked = (
        of(directory, drafter=drafter),
        of("Qwen3-8B", quant="nvfp4", kv_cache_dtype="fp8"),
    )
    assert found.pair.target.formats == asked.pair.target.formats
    assert found.pair.drafter.formats == asked.pair.drafter.formats
    assert found.pair.usual_formats() == USUAL | {"linears": "nvfp4"}
    assert found.pair.kv_cache == asked.pair.kv_cache == FORMATS["fp8"]
    assert found.plain_steps() == asked.plain_steps()
    assert of(directory, drafter=drafter, kv_cache_dtype="bfloat16").pair.kv_cache is None


def test_modules_stored_otherwise_are_counted_so(stored: Stored) -> None:
    """NVFP4 but for one layer: its weights, and no others, take 16 bits."""
    exclude = ("lm_head", "model.layers.3.*")
    directory = stored("Qwen3-8B", "target", "nvfp4", exclude=exclude)
    pair = of(directory, drafter="Qwen3-8B-DFlash-b16").pair
    assert pair.format_counts()["linears"] == {"nvfp4": 35 * 7, "bf16": 7}
    target = find_target(str(directory))
    tensors = checkpoint_of_config(target.config, target.quantization).tensors
    linears = {
        name: info
        for name, info in tensors.items()
        if len(info.shape) == 2 and "embed" not in name
    }
    counted = sum(cost.weight_bytes for cost in pair.plain_step())
    assert counted == sum(info.nbytes for info in linears.values())


def test_drafter_is_estimated_as_it_is_stored(stored: Stored) -> None:
    directory = stored("Qwen3-8B", "drafter", "fp8", exclude=("fc",))
    pair = of("Qwen3-8B", drafter=str(directory)).pair
    assert pair.usual_formats() == USUAL | {"drafter": "fp8"}
    assert pair.format_counts()["drafter"] == {"fp8": 5 * 7}


def test_quantized_head_is_one(stored: Stored) -> None:
    directory = stored("Qwen3-8B", "target", "fp8", exclude=())
    pair = of(directory, drafter="Qwen3-8B-DFlash-b16").pair
    assert pair.usual_formats() == USUAL | {"linears": "fp8", "head": "fp8"}


@pytest.mark.parametrize("quant", ["fp8", "nvfp4", "w4a16_nvfp4"])
def test_mxfp4_experts_stay_as_they_come(quant: str) -> None:
    pair = of("gpt-oss-20b", quant=quant).pair
    assert pair.usual_formats() == USUAL | {"linears": quant, "experts": "mxfp4"}
    (form,) = {cost.format for cost in pair.plain_step() if cost.operation == "experts"}
    assert form is not None
    assert form.weight_bits() == 4.25
    gpu = GPUS[0]
    assert peak_flops(form, gpu) == gpu.bf16_tflops * 1e12


@pytest.mark.slow
@pytest.mark.parametrize(("quant", "experts"), [("fp8", "w8a16_fp8"), ("nvfp4", "w4a16_nvfp4")])
def test_activations_of_experts_are_never_quantized(
    quant: str, experts: str, stored: Stored
) -> None:
    """As in a build: 4 bits for their weights, or nothing; and no format for routers."""
    asked = of("Qwen3-Coder-30B-A3B", quant=quant).pair
    assert asked.usual_formats() == USUAL | {"linears": quant, "experts": experts}
    router = asked.plain_step()[8]
    assert (router.weight_bytes, router.format) == (2048 * 128 * 2, None)
    directory = stored("Qwen3-Coder-30B-A3B", "target", quant)
    drafter = "Qwen3-Coder-30B-A3B-DFlash"
    assert of(directory, drafter=drafter).pair.target.formats == asked.target.formats


def test_quantized_model_is_not_quantized_again(stored: Stored) -> None:
    directory = stored("Qwen3-8B", "target", "nvfp4")
    with pytest.raises(
        UsageError, match=r"--quant fp8: .*target is NVFP4 already; leave the option out"
    ):
        of(directory, drafter="Qwen3-8B-DFlash-b16", quant="fp8")


def test_gpu_without_the_arithmetic_is_refused(stored: Stored) -> None:
    directory = stored("Qwen3-8B", "target", "fp8", kv_cache=True)
    with pytest.raises(
        UsageError, match=r"target, stored in fp8: A100 80GB \(sm80\) has no arithmetic for FP8"
    ):
        of(directory, "sm80", drafter="Qwen3-8B-DFlash-b16")
    with pytest.raises(
        UsageError,
        match=(
            r"--quant w4a16_nvfp4: H100 \(sm90\) has no arithmetic for W4A16_NVFP4. Who has it: Bla"
        ),
    ):
        of("Qwen3-8B", "sm90", quant="w4a16_nvfp4")


def test_format_that_cannot_be_built_is_refused_by_name(stored: Stored) -> None:
    directory = stored("Qwen3-8B", "target", "fp8")
    (directory / "hf_quant_config.json").write_text(
        json.dumps({"quantization": {"quant_algo": "W4A8_AWQ"}})
    )
    with pytest.raises(ConfigError, match='quant_algo is "W4A8_AWQ", which cannot be built'):
        of(directory, drafter="Qwen3-8B-DFlash-b16")
