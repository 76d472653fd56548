"""The two files of a quantization configuration: what they say together, and contradictions."""

from __future__ import annotations

from typing import Any

import pytest

from tests.checkpoint.quant_config_files import EXCLUDE, MIXED, read
from tests.fixtures.quantized import quant_configs
from trtllm_dflash.checkpoint.formats import MXFP4
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
            ("fp8", None, EXCLUDE),
            ("fp8", None, ("lm_head",)),
            r'excluded modules: \["model.embed_tokens"\] against \[',
        ),
        (
            ("fp8", MIXED, ()),
            ("fp8", {**MIXED, "model.layers.0.mlp.up_proj": "fp8"}, ()),
            'formats of single modules: model.layers.0.mlp.up_proj is "nvfp4" against "fp8"',
        ),
    ],
)
def test_two_files_that_contradict_each_other(first: Any, second: Any, words: str) -> None:
    original, flat = quant_configs(*first)[0], quant_configs(*second)[1]
    with pytest.raises(
        ConfigError,
        match=f"x: hf_quant_config.json and config.json contradict each other .*{words}",
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


def test_other_contradictions() -> None:
    original, _ = quant_configs("fp8", None, EXCLUDE, kv_cache=True)
    with pytest.raises(ConfigError, match=r'the type of the caches: "fp8" against null'):
        read(original, quant_configs("fp8", None, EXCLUDE)[1])
    _, flat = quant_configs("fp8", None, EXCLUDE)
    flat["quant_algo"] = "NVFP4"
    with pytest.raises(
        ConfigError, match=r'quant_algo and config_groups contradict .*"nvfp4" against "fp8"'
    ):
        read(None, flat)
