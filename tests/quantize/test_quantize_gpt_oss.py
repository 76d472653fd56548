"""gpt-oss in BF16 to MXFP4, the layout in which it is published."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("modelopt")

import torch

from tests.fixtures.quantized import read_tensors, write_tensors
from tests.fixtures.tiny_models import tiny_drafter, tiny_target
from tests.fixtures.tiny_moe import tiny_gpt_oss, tiny_qwen3_moe
from tests.quantize import modelopt
from tests.quantize.test_quantize_target import stored
from trtllm_dflash.checkpoint.index import read_all_tensor_infos
from trtllm_dflash.checkpoint.loader import load_target
from trtllm_dflash.checkpoint.mxfp4 import dequantized_experts
from trtllm_dflash.errors import CheckpointError, UsageError
from trtllm_dflash.options.quantize import QuantizeConfig
from trtllm_dflash.quantize.mxfp4 import decode, encode
from trtllm_dflash.quantize.pipeline import quantize

pytestmark = pytest.mark.slow

EXPERTS = [
    f"model.layers.{layer}.mlp.experts.{name}"
    for layer, name in product(range(4), ("gate_up_proj", "down_proj"))
]
Oss = Callable[..., Path]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a tiny BF16 gpt-oss whose experts are no numbers of MXFP4."""
    directory = tiny_gpt_oss(
        tmp_path_factory.mktemp("plain") / "gpt_oss", mxfp4=False, dtype="BF16"
    )
    random = np.random.default_rng(3)
    tensors = read_tensors(directory / "model.safetensors")
    for name in EXPERTS:
        noise = random.uniform(0.8, 1.2, tensors[name].shape)
        tensors[name] = (tensors[name].astype(np.float32) * noise).astype(tensors[name].dtype)
    write_tensors(
        directory / "model.safetensors",
        {name: ("BF16", array) for name, array in tensors.items()},
    )
    return directory


@pytest.fixture(scope="module")
def ours(plain: Path, ids_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Oss:
    """`ours(format, kv_cache_dtype=None)`: what `quantize` makes of it, made once."""
    made: dict[tuple[str, str | None], Path] = {}

    def make(form: str, kv_cache_dtype: str | None = None) -> Path:
        if (form, kv_cache_dtype) not in made:
            directory = tmp_path_factory.mktemp("quantized") / form
            options: dict[str, Any] = {"kv_cache_dtype": kv_cache_dtype, "calib_file": ids_file}
            report = quantize(QuantizeConfig(str(plain), directory, form, **options))
            assert report.compared == 71
            assert 0.5 < report.agreed / report.compared < 1
            made[form, kv_cache_dtype] = directory
        return made[form, kv_cache_dtype]

    return make


def test_it_has_the_published_layout(ours: Oss, plain: Path, tmp_path: Path) -> None:
    published = tiny_gpt_oss(tmp_path / "published", dtype="BF16")
    infos, wanted = (read_all_tensor_infos(each) for each in (ours("mxfp4"), published))
    assert {name: (info.dtype, info.shape) for name, info in infos.items()} == {
        name: (info.dtype, info.shape) for name, info in wanted.items()
    }
    before = read_all_tensor_infos(plain)
    kept = [name for name in infos if not name.startswith(tuple(EXPERTS)) or "bias" in name]
    assert len(kept) == len(before) - len(EXPERTS)
    assert all(stored(infos[name]) == stored(before[name]) for name in kept)
    configs = [
        json.loads((each / "config.json").read_text())["quantization_config"]
        for each in (ours("mxfp4"), published)
    ]
    assert configs[0] == configs[1]
    assert not (ours("mxfp4") / "hf_quant_config.json").exists()


def test_its_numbers_are_those_that_transformers_reads(ours: Oss, plain: Path) -> None:
    from transformers import AutoModelForCausalLM, Mxfp4Config

    model = AutoModelForCausalLM.from_pretrained(
        ours("mxfp4"), dtype="auto", quantization_config=Mxfp4Config(dequantize=True)
    )
    target, original = load_target(ours("mxfp4")), read_tensors(plain / "model.safetensors")
    for name in EXPERTS:
        theirs = model.get_parameter(name).detach().float().numpy().transpose(0, 2, 1)
        np.testing.assert_array_equal(dequantized_experts(target.tensors, name), theirs)
        before = torch.from_numpy(original[name].astype(np.float32).transpose(0, 2, 1))
        for expert, ours_of in zip(before, theirs, strict=True):
            best = decode(*encode(expert.contiguous()))
            np.testing.assert_array_equal(best.numpy(), ours_of)
        error = np.linalg.norm(theirs - before.numpy()) / np.linalg.norm(before.numpy())
        assert 0.05 < error < 0.13


def test_a_published_checkpoint_survives_the_way_through_bf16(
    ids_file: Path, tmp_path: Path
) -> None:
    published = tiny_gpt_oss(tmp_path / "published", dtype="BF16")
    bf16 = tiny_gpt_oss(tmp_path / "bf16", mxfp4=False, dtype="BF16")
    report = quantize(
        QuantizeConfig(str(bf16), tmp_path / "again", "mxfp4", calib_file=ids_file)
    )
    assert report.agreed == report.compared
    first, second = (load_target(each).tensors for each in (published, report.directory))
    for name in EXPERTS:
        np.testing.assert_array_equal(
            dequantized_experts(first, name), dequantized_experts(second, name)
        )


@pytest.mark.parametrize("form", ["mxfp4", "none"])
def test_scales_of_caches_are_modelopts(
    form: str, ours: Oss, plain: Path, tmp_path: Path
) -> None:
    """They are of what its whole forward computes: with sinks, and with windows of 7 tokens."""
    model = modelopt.quantized_model(plain, "none", "fp8")
    theirs = read_all_tensor_infos(modelopt.export(model, plain, tmp_path / "theirs"))
    scales = [name for name in theirs if name.endswith("_scale")]
    assert len(scales) == 2 * 4
    infos = read_all_tensor_infos(ours(form, "fp8"))
    assert all(stored(infos[name]) == stored(theirs[name]) for name in scales)
    target = load_target(ours(form, "fp8"))
    assert target.quantization.kv_cache == "fp8"
    assert target.quantization.mxfp4 == (form == "mxfp4")


@pytest.mark.parametrize("form", ["fp8", "nvfp4", "w4a16_nvfp4"])
def test_other_formats_are_refused(form: str, plain: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="of gpt-oss only the experts are quantized"):
        quantize(QuantizeConfig(str(plain), tmp_path / "out", form))
    assert not (tmp_path / "out").exists()


def test_other_targets_are_refused(plain: Path, tmp_path: Path) -> None:
    dense = tiny_target(tmp_path / "dense", "llama")
    experts = tiny_qwen3_moe(tmp_path / "experts")
    for target in (dense, experts):
        with pytest.raises(CheckpointError, match="--quant mxfp4 is of gpt-oss's experts"):
            quantize(QuantizeConfig(str(target), tmp_path / "out", "mxfp4"))
    drafter = tiny_drafter(tmp_path / "drafter", plain)
    with pytest.raises(UsageError, match="a drafter has none; leave --quantize-drafter out"):
        QuantizeConfig(str(plain), tmp_path / "out", "mxfp4", drafter=str(drafter))
    assert not (tmp_path / "out").exists()


def test_inputs_that_do_not_fill_blocks_are_refused(plain: Path, tmp_path: Path) -> None:
    tensors = read_tensors(plain / "model.safetensors")
    for name in EXPERTS:
        down = name.endswith("down_proj")
        tensors[name] = tensors[name][:, :80] if down else tensors[name][..., :160]
        if not down:
            tensors[f"{name}_bias"] = tensors[f"{name}_bias"][:, :160]
    write_tensors(
        tmp_path / "model.safetensors",
        {name: ("BF16", np.ascontiguousarray(array)) for name, array in tensors.items()},
    )
    config = json.loads((plain / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 80}))
    with pytest.raises(CheckpointError) as caught:
        quantize(QuantizeConfig(str(tmp_path), tmp_path / "out", "mxfp4"))
    assert str(caught.value) == (
        f"target {tmp_path}: --quant mxfp4 has a scale for every 32 inputs of a linear, so their"
        " number must be a multiple of 32: "
        + ", ".join(f"model.layers.{layer}.mlp.experts.down_proj has 80" for layer in range(4))
        + ". build takes it as it is."
    )
