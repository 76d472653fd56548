"""The two files of a quantization configuration: what they say together, and contradictions."""

from __future__ import annotations

from typing import Any

import pytest

from tests.checkpoint.quant_config_files import EXCLUDE, MIXED, WHERE, read
from tests.fixtures.quantized import quant_configs
from trtllm_dflash.checkpoint.formats import MXFP4
from trtllm_dflash.checkpoint.quant_config import read_quantization
from trtllm_dflash.errors import ConfigError


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (
            ("fp8", None, EXCLUDE),
            ("nvfp4", None, EXCLUDE),
            'about the format: "fp8" against "nvfp4"',
        ),
        (
            ("nvfp4", None, EXCLUDE),
            ("w4a16_nvfp4", None, EXCLUDE),
            'about the format: "nvfp4" against "w4a16_nvfp4"',
        ),
        (
            ("fp8", MIXED, ()),
            ("fp8", {**MIXED, "model.layers.0.mlp.up_proj": "fp8"}, ()),
            'about the format of model.layers.0.mlp.up_proj: "nvfp4" against "fp8"',
        ),
    ],
)
def test_two_files_that_contradict_each_other(first: Any, second: Any, words: str) -> None:
    original, flat = quant_configs(*first)[0], quant_configs(*second)[1]
    with pytest.raises(
        ConfigError,
        match=f"x: hf_quant_config.json's .* and config.json's .* contradict each other .*{words}",
    ):
        read(original, flat)


def test_mxfp4_is_of_experts_alone() -> None:
    """As gpt-oss is published: its patterns name modules, and every linear stays unquantized."""
    kept = [
        "model.layers.*.self_attn",
        "model.layers.*.mlp.router",
        "model.embed_tokens",
        "lm_head",
    ]
    quantization = read(None, {"quant_method": "mxfp4", "modules_to_not_convert": kept})
    assert quantization.mxfp4
    assert quantization.is_quantized
    assert quantization.format_of("model.layers.0.self_attn.q_proj") is None
    assert quantization.format_of_experts("model.layers.0.mlp.experts.down_proj") is MXFP4
    quantization = read(
        None,
        {"quant_method": "mxfp4", "modules_to_not_convert": [*kept, "model.layers.0.mlp.*"]},
    )
    assert quantization.format_of_experts("model.layers.0.mlp.experts.down_proj") is None
    assert quantization.format_of_experts("model.layers.1.mlp.experts.down_proj") is MXFP4


def test_mxfp4_beside_another_format() -> None:
    with pytest.raises(
        ConfigError, match=r'contradict each other about the format: "fp8" against null'
    ):
        read(quant_configs("fp8", None, EXCLUDE)[0], {"quant_method": "mxfp4"})


def test_quant_algo_against_its_groups() -> None:
    _, flat = quant_configs("fp8", None, EXCLUDE)
    flat["quant_algo"] = "NVFP4"
    with pytest.raises(
        ConfigError, match=r'quant_algo and config_groups contradict .*"nvfp4" against "fp8"'
    ):
        read(None, flat)


LM_HEAD_BY_LAYER = {"lm_head": "w4a16_nvfp4", "model.layers.0.mlp.up_proj": "nvfp4"}


def _with_one_group(layers: dict[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return both files as ModelOpt 0.44 publishes them: one group for modules of two formats."""
    original, flat = quant_configs("nvfp4", layers, ())
    group = quant_configs("nvfp4", None, ())[1]["config_groups"]["group_0"]
    flat["config_groups"] = {"group_0": group | {"targets": sorted(layers)}}
    return original, flat


@pytest.mark.parametrize("files", ["both", "config.json"])
def test_entry_of_a_module_wins_over_groups(
    files: str, caplog: pytest.LogCaptureFixture
) -> None:
    original, flat = _with_one_group(LM_HEAD_BY_LAYER)
    quantization = read(original if files == "both" else None, flat)
    assert quantization.modules == LM_HEAD_BY_LAYER
    assert quantization.default is None
    (record,) = caplog.records
    assert (
        "quantized_layers stores lm_head as w4a16_nvfp4, config_groups as nvfp4" in caplog.text
    )
    assert record.levelname == "WARNING"


@pytest.mark.parametrize("source", ["hf_quant_config.json", "config_groups"])
def test_mixed_precision_whose_layers_are_listed_elsewhere(source: str) -> None:
    original, flat = quant_configs("nvfp4", MIXED, ())
    del flat["quantized_layers"]
    if source == "hf_quant_config.json":
        del flat["config_groups"]
    quantization = read(original if source == "hf_quant_config.json" else None, flat)
    assert quantization.modules == MIXED
    assert quantization.default is None


def test_entry_of_a_module_beside_a_format_of_all() -> None:
    _, flat = quant_configs("fp8", None, ("lm_head",))
    flat["quantized_layers"] = {"lm_head": {"quant_algo": "W4A16_NVFP4", "group_size": None}}
    quantization = read(None, flat)
    assert (quantization.default, quantization.modules) == ("fp8", {"lm_head": "w4a16_nvfp4"})
    fmt = quantization.format_of("lm_head")
    assert fmt is not None
    assert fmt.name == "w4a16_nvfp4"


@pytest.mark.parametrize("silent", ["hf_quant_config.json", "config.json"])
def test_silence_contradicts_nothing(silent: str) -> None:
    original, flat = quant_configs("nvfp4", None, EXCLUDE, kv_cache=True)
    if silent == "config.json":
        flat |= {"ignore": None, "kv_cache_scheme": None, "config_groups": None}
    else:
        nothing = ("exclude_modules", "kv_cache_quant_algo", "group_size")
        original["quantization"] |= dict.fromkeys(nothing)
    quantization = read(original, flat)
    assert (quantization.default, quantization.kv_cache) == ("nvfp4", "fp8")
    assert quantization.excluded == quantization.doubtful == EXCLUDE


def test_names_in_one_file_and_patterns_in_the_other() -> None:
    original, flat = quant_configs("fp8", None, ("lm_head", "model.layers.0*"))
    flat["ignore"] = ["lm_head", "model.layers.0.mlp.up_proj"]
    quantization = read(original, flat)
    assert quantization.doubtful == ("model.layers.0*", "model.layers.0.mlp.up_proj")
    assert quantization.excluded_by("lm_head") == "lm_head"


def test_groups_that_list_linears_leave_the_others_open() -> None:
    _, flat = quant_configs("fp8", None, ())
    flat["config_groups"]["group_0"]["targets"] = ["lm_head"]
    assert read(None, flat).doubtful == ("*",)


@pytest.mark.parametrize(
    "section",
    [
        {"quantization_config": {"quant_method": "bitsandbytes"}},
        {"compression_config": {"format": "pack-quantized"}},
    ],
)
def test_other_methods_are_left_to_the_tensors(section: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="cannot be built: its weights are"):
        read_quantization(section, None, WHERE)
    unread = read_quantization(section, None, WHERE, has_weights=True).unread_method
    assert unread is not None
    assert "cannot be built: its weights are" in unread.refusal
