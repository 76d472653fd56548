"""Checkpoints of hybrid targets: as transformers saves them, other parts beside the decoder, both
layouts of experts, and quantized ones.
"""

from __future__ import annotations

import fnmatch
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.checkpoint.test_loader import copy_with
from tests.fixtures.published import SCHEMES, published_copy
from tests.fixtures.quantized import quantized_copy, read_tensors, to_e4m3, write_tensors
from tests.fixtures.tiny_hybrid import (
    EXCLUSIONS,
    HYBRIDS,
    QUANTIZABLE,
    quantized_hybrid,
    tiny_hybrid,
)
from trtllm_dflash.checkpoint.finite import check_finite
from trtllm_dflash.checkpoint.formats import FORMATS
from trtllm_dflash.checkpoint.from_config import checkpoint_of_config
from trtllm_dflash.checkpoint.loader import Checkpoint, load_target
from trtllm_dflash.checkpoint.quant_config import read_quantization
from trtllm_dflash.errors import CheckpointError, ConfigError
from trtllm_dflash.models.base import TargetConfig

IMAGES = "qwen3_5_vl"
TEXT = "model.language_model."
WITH_EXPERTS = [name for name, family in HYBRIDS.items() if family.experts]


def same_values(left: Checkpoint[TargetConfig], right: Checkpoint[TargetConfig]) -> None:
    """Compare all tensors that are used."""
    assert left.tensors.keys() == right.tensors.keys()
    for name, info in left.tensors.items():
        other = right.tensors[name].array()
        assert np.array_equal(info.array().astype(np.float32), other.astype(np.float32)), name


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", HYBRIDS)
def test_a_model_that_transformers_saved(name: str, tied: bool, tmp_path: Path) -> None:
    """Its own names, layout of experts and configuration, and the encoder of images."""
    pytest.importorskip("torch")
    import transformers

    first = tiny_hybrid(tmp_path / "first", name, tied=tied)
    model_class = getattr(transformers, HYBRIDS[name].architecture)
    model, loading = model_class.from_pretrained(first, output_loading_info=True)
    assert not any(loading.values())
    model.save_pretrained(tmp_path / "second")
    ours, saved = load_target(first), load_target(tmp_path / "second")
    same_values(ours, saved)
    assert saved.config == ours.config
    assert saved.config.tie_word_embeddings == tied


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
@pytest.mark.parametrize("name", WITH_EXPERTS)
def test_experts_in_one_tensor_are_their_linears(name: str, dtype: str, tmp_path: Path) -> None:
    each = load_target(tiny_hybrid(tmp_path / "each", name, dtype=dtype))
    fused = load_target(tiny_hybrid(tmp_path / "fused", name, dtype=dtype, fused=True))
    stored = read_tensors(tmp_path / "fused" / "model.safetensors")
    assert any(name.endswith("mlp.experts.gate_up_proj") for name in stored)
    same_values(each, fused)


def test_other_parts_are_left_out_for_a_reason(tmp_path: Path) -> None:
    target = load_target(tiny_hybrid(tmp_path / "m", IMAGES))
    reasons = {name.split(".")[-3]: row.reason for name, row in target.ignored.items()}
    assert all(name.startswith(("model.visual.", "mtp.")) for name in target.ignored)
    assert "only text is generated" in target.ignored["model.visual.pos_embed.weight"].reason
    assert "drafts come from the DFlash drafter" in target.ignored["mtp.fc.weight"].reason
    assert len(set(reasons.values())) == 2
    assert not any("language_model" in name for name in target.tensors)


def test_the_decoders_names_do_not_depend_on_the_class(tmp_path: Path) -> None:
    """A model of text alone may be stored under the names of one with images, and the reverse."""
    text = tiny_hybrid(tmp_path / "text", "qwen3_5")
    images = tiny_hybrid(tmp_path / "images", IMAGES)
    same_values(load_target(text), load_target(images))
    files = [directory / "model.safetensors" for directory in (text, images)]
    first, second = (file.read_bytes() for file in files)
    files[0].write_bytes(second)
    files[1].write_bytes(first)
    same_values(load_target(text), load_target(images))


@pytest.mark.parametrize("stored", ["F32", "BF16"])
def test_decays_in_either_type(stored: str, tmp_path: Path) -> None:
    """A_log is float32 beside BF16 weights in some files, and BF16 in others."""
    name = "qwen3_5" if stored == "F32" else "qwen3_next"
    target = load_target(tiny_hybrid(tmp_path / "m", name, dtype="BF16"))
    assert target.tensors["model.layers.0.linear_attn.A_log"].dtype == stored
    assert target.dtype == "BF16"


def test_a_head_that_only_the_section_ties(tmp_path: Path) -> None:
    """The outer key counts, so a head is expected; without that key the section's does."""
    inner = {"tie_word_embeddings": True}
    path = tiny_hybrid(
        tmp_path / "m", IMAGES, config=inner, outer={"tie_word_embeddings": False}
    )
    assert "lm_head.weight" in load_target(path).tensors
    path = tiny_hybrid(
        tmp_path / "tied", IMAGES, tied=True, outer={"tie_word_embeddings": False}
    )
    with pytest.raises(CheckpointError, match=r"missing: lm_head.weight \[97, 48\]"):
        load_target(path)
    path = tiny_hybrid(tmp_path / "old", IMAGES, tied=True, outer={"tie_word_embeddings": None})
    assert "lm_head.weight" not in load_target(path).tensors


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", HYBRIDS)
def test_quantized_hybrids_load(name: str, form: str, tmp_path: Path) -> None:
    directory = quantized_hybrid(tmp_path / "q", name, form, kv_cache=True)
    target = load_target(directory)
    check_finite(target)
    formats = {module: fmt.name for module, fmt in target.formats.items()}
    last = "in_proj_qkvz" if name == "qwen3_next" else "in_proj_z"
    assert formats[f"model.layers.0.linear_attn.{last}"] == form
    assert formats["model.layers.0.linear_attn.out_proj"] == form
    assert formats["model.layers.3.self_attn.q_proj"] == form
    assert not any(module.endswith(("in_proj_a", "in_proj_ba", "gate")) for module in formats)
    scales = {name.split(".")[2] for name in target.tensors if name.endswith("k_scale")}
    assert scales == {"3", "5"}  # of the layers that have keys
    config = json.loads((directory / "config.json").read_text())
    quantization = read_quantization(config, None, "m")
    planned = checkpoint_of_config(target.config, quantization)
    assert planned.tensors.keys() == target.tensors.keys()
    assert planned.formats == target.formats


def test_a_format_by_module_under_stored_names(tmp_path: Path) -> None:
    """Other parts may be quantized too: their tensors and formats are left out with them."""
    source = tiny_hybrid(tmp_path / "m", IMAGES, dtype="BF16", sizes=QUANTIZABLE)
    modules = {
        f"{TEXT}layers.0.linear_attn.in_proj_qkv": "fp8",
        f"{TEXT}layers.0.mlp.down_proj": "nvfp4",
        "mtp.layers.0.self_attn.q_proj": "fp8",
        "model.visual.blocks.0.attn.qkv": "nvfp4",
    }
    directory = quantized_copy(source, tmp_path / "q", modules=modules)
    target = load_target(directory)
    assert {module: fmt.name for module, fmt in target.formats.items()} == {
        "model.layers.0.linear_attn.in_proj_qkv": "fp8",
        "model.layers.0.mlp.down_proj": "nvfp4",
    }
    assert "model.visual.blocks.0.attn.qkv.weight_scale" in target.ignored


@pytest.mark.parametrize(
    "exclusion",
    [
        f"{TEXT}layers.0.linear_attn",
        f"{TEXT}layers.0.linear_attn.*",
        "*.language_model.layers.0.linear_attn*",
        "model.layers.0.linear_attn",
        "*layers.0.linear_attn*",
    ],
)
def test_exclusions_by_either_name(exclusion: str, tmp_path: Path) -> None:
    exclude = (*EXCLUSIONS, f"{TEXT}layers.0.linear_attn.*")
    directory = quantized_hybrid(tmp_path / "q", IMAGES, exclude=exclude)
    config = json.loads((directory / "config.json").read_text())
    del config["quantization_config"]
    (directory / "config.json").write_text(json.dumps(config))
    settings = directory / "hf_quant_config.json"
    stated = json.loads(settings.read_text())
    stated["quantization"]["exclude_modules"] = [*EXCLUSIONS, exclusion]
    settings.write_text(json.dumps(stated))
    formats = load_target(directory).formats
    assert "model.layers.0.linear_attn.in_proj_qkv" not in formats
    assert "model.layers.1.linear_attn.in_proj_qkv" in formats
    stated["quantization"]["exclude_modules"] = list(EXCLUSIONS)
    settings.write_text(json.dumps(stated))
    with pytest.raises(CheckpointError, match=r"in_proj_qkv.weight is BF16, not NVFP4"):
        load_target(directory)


def test_a_tensor_under_both_names(tmp_path: Path) -> None:
    path = tiny_hybrid(tmp_path / "m", IMAGES)
    norm = np.zeros(48, np.float32)
    with pytest.raises(
        CheckpointError, match=r"model.norm.weight is stored twice, also as model.lang"
    ):
        load_target(copy_with(path, tmp_path / "twice", {"model.norm.weight": norm}))


@pytest.mark.parametrize("scheme", ["fine_grained", "fp8_channel", "nvfp4"])
@pytest.mark.parametrize("name", [IMAGES, "qwen3_next"])
def test_quantized_by_other_makers(name: str, scheme: str, tmp_path: Path) -> None:
    source = tiny_hybrid(tmp_path / "m", name, sizes=QUANTIZABLE)
    stored = read_tensors(source / "model.safetensors")
    modules = [tensor.removesuffix(".weight") for tensor in stored]
    kept = {module for row in EXCLUSIONS for module in fnmatch.filter(modules, row)}
    directory = published_copy(source, tmp_path / "q", scheme, exclude=tuple(sorted(kept)))
    formats = {module: fmt.name for module, fmt in load_target(directory).formats.items()}
    assert set(formats.values()) <= {SCHEMES[scheme].expected, "w4a16_nvfp4"}  # of experts
    assert formats["model.layers.0.linear_attn.out_proj"] == SCHEMES[scheme].expected
    assert not any(module.endswith(("in_proj_a", "in_proj_ba", "gate")) for module in formats)


def test_stacked_experts_in_fine_grained_fp8(tmp_path: Path) -> None:
    """A layer's experts as one tensor and its scales of blocks, under the decoder's prefix."""
    sizes = {"expert_size": 128, "experts": 2, "top_k": 1}
    path = tiny_hybrid(tmp_path / "m", "qwen3_5_moe_vl", fused=True, dtype="BF16", sizes=sizes)
    stored: dict[str, tuple[str, np.ndarray]] = {}
    for name, array in read_tensors(path / "model.safetensors").items():
        stored[name] = ("BF16", array)
        if name.endswith(("gate_up_proj", "experts.down_proj")):
            stored[name] = ("F8_E4M3", array)
            blocks = (2, -(-array.shape[1] // 128), -(-array.shape[2] // 128))
            stored[f"{name}_scale_inv"] = ("F32", np.full(blocks, 0.5))
    write_tensors(path / "model.safetensors", stored)
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
        "modules_to_not_convert": [
            name.removesuffix(".weight") for name in stored if "experts." not in name
        ],
    }
    (path / "config.json").write_text(json.dumps(config))
    target = load_target(path)
    module = "model.layers.0.mlp.experts.1.up_proj"
    stacked = stored[f"{TEXT}layers.0.mlp.experts.gate_up_proj"][1]
    assert target.formats[module].name == "fp8_block"
    assert len(target.formats) == 6 * 2 * 3
    codes = target.tensors[f"{module}.weight"].array().astype(np.float32)
    np.testing.assert_array_equal(codes, to_e4m3(stacked[1, 128:]))


def test_formats_of_another_method_are_refused(tmp_path: Path) -> None:
    method: dict[str, Any] = {"quant_method": "gptq", "bits": 4}
    path = tiny_hybrid(tmp_path / "m", IMAGES, outer={"quantization_config": method})
    packed = np.ones((1, 1), np.float32)
    name = f"{TEXT}layers.0.mlp.down_proj.qweight"
    with pytest.raises(ConfigError, match=r"quant_method is \"gptq\""):
        load_target(copy_with(path, tmp_path / "gptq", {name: packed}))
