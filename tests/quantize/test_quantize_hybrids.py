"""Hybrid targets: our quantization against ModelOpt's own export, and its exports of experts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("modelopt")

from tests.fixtures.quantized import read_tensors, write_tensors
from tests.fixtures.tiny_hybrid import PATTERN, TEXT, tiny_hybrid
from tests.quantize import modelopt
from tests.quantize.test_quantize_target import stored
from trtllm_dflash.builder.what_if import as_if_quantized
from trtllm_dflash.checkpoint.formats import FORMATS
from trtllm_dflash.checkpoint.index import read_all_tensor_infos
from trtllm_dflash.checkpoint.loader import load_target
from trtllm_dflash.checkpoint.safetensors import TensorInfo
from trtllm_dflash.options.quantize import QuantizeConfig
from trtllm_dflash.quantize.pipeline import quantize
from trtllm_dflash.quantize.quantized_weights import quantized_weights

# Numbers that linears read fill groups of 16.
SIZES = {"value_dim": 16, "ffn": 80, "expert_size": 32, "shared_size": 48}
LINEAR = [index for index, name in enumerate(PATTERN) if name == "linear_attention"]
FULL = [index for index in range(len(PATTERN)) if index not in LINEAR]
LEFT_OUT = ("conv1d", "in_proj_a", "in_proj_b", "in_proj_ba")

MakeHybrid = Callable[..., Path]


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> MakeHybrid:
    """`hybrid(name)`: a tiny BF16 target of that family, made once."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            directory = tmp_path_factory.mktemp("hybrid") / name
            made[name] = tiny_hybrid(directory, name, dtype="BF16", tokenizer=True, sizes=SIZES)
        return made[name]

    return make


@pytest.fixture(scope="module")
def ours(
    hybrid: MakeHybrid, ids_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Path]:
    """`ours(name, format)`: what `quantize` makes of it with FP8 caches, made once."""
    made: dict[tuple[str, str], Path] = {}

    def make(name: str, form: str) -> Path:
        if (name, form) not in made:
            directory = tmp_path_factory.mktemp("quantized") / form
            asked = QuantizeConfig(
                str(hybrid(name)), directory, form, kv_cache_dtype="fp8", calib_file=ids_file
            )
            quantize(asked)
            made[name, form] = directory
        return made[name, form]

    return make


def described(directory: Path) -> dict[str, Any]:
    """Return what both of ModelOpt's descriptions say."""
    quantization = json.loads((directory / "hf_quant_config.json").read_text())
    config = json.loads((directory / "config.json").read_text())
    return {"hf": quantization, "config": config["quantization_config"]}


def contents(infos: dict[str, TensorInfo]) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {name: stored(info) for name, info in infos.items()}


@pytest.mark.slow
@pytest.mark.parametrize("form", ["fp8", "nvfp4", "w4a16_nvfp4"])
def test_hybrid_has_every_byte_of_modelopts_export(
    form: str, hybrid: MakeHybrid, ours: Callable[[str, str], Path], tmp_path: Path
) -> None:
    """But for A_log, which ModelOpt rounds to BF16 and we keep as it is."""
    directory = ours("qwen3_5", form)
    model = modelopt.quantized_model(hybrid("qwen3_5"), form, "fp8")
    theirs = modelopt.export(model, hybrid("qwen3_5"), tmp_path / "theirs")
    mine, other = (contents(read_all_tensor_infos(each)) for each in (directory, theirs))
    different = {
        name for name in mine.keys() | other.keys() if mine.get(name) != other.get(name)
    }
    a_log = {f"model.layers.{index}.linear_attn.A_log" for index in LINEAR}
    assert different == a_log
    original = contents(read_all_tensor_infos(hybrid("qwen3_5")))
    assert {name: mine[name] for name in a_log} == {name: original[name] for name in a_log}
    assert described(directory) == described(theirs)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["fp8", "nvfp4"])
def test_hybrid_leaves_out_what_is_published_so(
    form: str, hybrid: MakeHybrid, ours: Callable[[str, str], Path]
) -> None:
    """Convolutions and the gates of states are not quantized; only full layers have scales of
    keys and values.
    """
    target = load_target(ours("qwen3_5", form))
    before = load_target(hybrid("qwen3_5"))
    modules = {
        name.removesuffix(".weight") for name in quantized_weights(before, FORMATS["nvfp4"])
    }
    assert target.formats.keys() == modules
    assert not any(name.endswith(LEFT_OUT) or name == "lm_head" for name in modules)
    assert len(modules) == 6 * len(LINEAR) + 7 * len(FULL)
    for name, info in before.tensors.items():
        if name.removesuffix(".weight") not in modules:
            assert stored(info) == stored(target.tensors[name])
    scales = [name for name in target.tensors if name.endswith((".k_scale", ".v_scale"))]
    layers = [f"model.layers.{index}.self_attn." for index in FULL]
    assert len(scales) == 2 * len(FULL)
    assert all(name.startswith(tuple(layers)) for name in scales)
    assert target.quantization.kv_cache == "fp8"


@pytest.mark.slow
def test_other_parts_of_a_model_with_images_are_kept(
    hybrid: MakeHybrid, ours: Callable[[str, str], Path]
) -> None:
    """Its decoder is quantized as that of text alone, under its own prefix."""
    directory = ours("qwen3_5_vl", "nvfp4")
    before = contents(read_all_tensor_infos(hybrid("qwen3_5_vl")))
    after = contents(read_all_tensor_infos(directory))
    others = {name for name in before if not name.startswith((TEXT, "lm_head."))}
    assert {name.split(".")[0] for name in others} == {"model", "mtp"}
    assert {name: after[name] for name in others} == {name: before[name] for name in others}
    alone = contents(read_all_tensor_infos(ours("qwen3_5", "nvfp4")))
    decoder = {name: value for name, value in after.items() if name not in others}
    assert decoder == {name.replace("model.", TEXT, 1): value for name, value in alone.items()}
    excluded = described(directory)["hf"]["quantization"]["exclude_modules"]
    assert excluded == described(directory)["config"]["ignore"]
    assert excluded[-2:] == ["model.visual*", "mtp*"]
    assert f"{TEXT}layers.0.linear_attn.conv1d" in excluded
    found = load_target(directory)
    assert found.formats == load_target(ours("qwen3_5", "nvfp4")).formats
    assert found.ignored.keys() == others


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "with_images"),
    [("qwen3_next", False), ("qwen3_5_moe", False), ("qwen3_5_moe", True)],
)
def test_modelopts_nvfp4_experts_are_read(
    name: str, with_images: bool, hybrid: MakeHybrid, tmp_path: Path
) -> None:
    model = modelopt.quantized_model(hybrid(name), "nvfp4", "fp8")
    directory = modelopt.export(model, hybrid(name), tmp_path / "theirs")
    if with_images:
        around_text(directory, hybrid("qwen3_5_moe_vl"))
    target = load_target(directory)
    names = set(target.formats)
    per_layer = 3 * 7 + 3  # experts and the shared one
    inputs = (
        1 if name == "qwen3_next" else 2
    )  # projections of linear attention but for its gates
    assert len(names) == 6 * per_layer + len(LINEAR) * (inputs + 1) + 4 * len(FULL)
    assert not any(
        each.endswith((*LEFT_OUT, "mlp.gate", "shared_expert_gate")) for each in names
    )
    routed = {each for each in names if ".experts." in each}
    assert {target.formats[each].name for each in routed} == {"w4a16_nvfp4"}
    assert {target.formats[each].name for each in names - routed} == {"nvfp4"}
    assert target.quantization.kv_cache == "fp8"


def around_text(directory: Path, with_images: Path) -> None:
    """Give a checkpoint of text the names and the configuration of one with images."""
    infos = read_all_tensor_infos(directory)
    arrays = read_tensors(directory / "model.safetensors")
    renamed = {
        name.replace("model.", TEXT, 1): (infos[name].dtype, array)
        for name, array in arrays.items()
    }
    write_tensors(directory / "model.safetensors", renamed)
    quantization = described(directory)
    quantization["hf"]["quantization"]["exclude_modules"] = [
        name.replace("model.", TEXT, 1)
        for name in quantization["hf"]["quantization"]["exclude_modules"]
    ]
    (directory / "hf_quant_config.json").write_text(json.dumps(quantization["hf"]))
    config = json.loads((with_images / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config))


@pytest.mark.slow
def test_modelopts_fp8_experts_are_read_as_weights(hybrid: MakeHybrid, tmp_path: Path) -> None:
    model = modelopt.quantized_model(hybrid("qwen3_5_moe"), "fp8", None)
    formats = load_target(
        modelopt.export(model, hybrid("qwen3_5_moe"), tmp_path / "theirs")
    ).formats
    routed = {name for name in formats if ".experts." in name}
    assert len(routed) == 6 * 3 * 7
    assert {formats[name].name for name in routed} == {"w8a16_fp8"}
    assert {formats[name].name for name in formats.keys() - routed} == {"fp8"}


@pytest.mark.slow
def test_a_supposed_format_has_the_same_exclusions(hybrid: MakeHybrid) -> None:
    target = load_target(hybrid("qwen3_5"))
    supposed = as_if_quantized(target, "nvfp4")
    assert {f"{name}.weight" for name in supposed.formats} == quantized_weights(
        target, FORMATS["nvfp4"]
    )
