"""Both layouts of ModelOpt's quantization: read, compared, and refused by name where it cannot be
built.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tests.checkpoint.quant_config_files import EXCLUDE, MIXED, read
from tests.fixtures.quantized import ALGOS, quant_configs
from trtllm_dflash.checkpoint.formats import FORMATS, MXFP4, Quantization
from trtllm_dflash.checkpoint.quant_config import MAX_PATTERNS, REFUSED_ALGOS
from trtllm_dflash.errors import ConfigError
from trtllm_dflash.hardware.archs import ARCHS


@pytest.mark.parametrize("name", ALGOS)
@pytest.mark.parametrize("kv_cache", [False, True])
def test_both_layouts_say_the_same(name: str, kv_cache: bool) -> None:
    original, flat = quant_configs(name, None, EXCLUDE, kv_cache=kv_cache)
    wanted = Quantization(name, {}, EXCLUDE, "fp8" if kv_cache else None)
    for layouts in ((original, None), (None, flat), (original, flat), (None, original)):
        assert read(*layouts) == wanted
    assert wanted.format_of("model.layers.0.mlp.up_proj") is FORMATS[name]
    assert wanted.format_of("lm_head") is None


def test_mixed_precision() -> None:
    original, flat = quant_configs("fp8", MIXED, ())
    del flat["quantized_layers"]["model.layers.0.mlp.up_proj"][
        "group_size"
    ]  # it may be unstated
    for layouts in ((original, None), (None, flat), (original, flat)):
        quantization = read(*layouts)
        assert quantization.modules == MIXED
        assert quantization.format_of("model.layers.0.mlp.up_proj") is FORMATS["nvfp4"]
        assert quantization.format_of("model.layers.0.mlp.gate_proj") is None


def test_groups_alone_are_enough() -> None:
    for name in ALGOS:
        _, flat = quant_configs(name, None, EXCLUDE)
        del flat["quant_algo"]
        assert read(None, flat).default == name
    _, flat = quant_configs("fp8", MIXED, ())
    del flat["quant_algo"], flat["quantized_layers"]
    assert read(None, flat).modules == MIXED


@pytest.mark.parametrize(
    ("algo", "name"),
    [
        ("FP8_PER_CHANNEL_PER_TOKEN", "w8a16_fp8"),
        ("FP8_PC_PT", "w8a16_fp8"),
        ("fp8_pb_wo", "fp8_block"),
    ],
)
def test_modelopts_fp8_that_is_read_as_weights_alone(algo: str, name: str) -> None:
    original = {"quantization": {"quant_algo": algo, "exclude_modules": list(EXCLUDE)}}
    flat = {"quant_algo": algo, "quant_method": "modelopt", "ignore": list(EXCLUDE)}
    assert read(original, flat) == Quantization(name, {}, EXCLUDE)


def test_unquantized() -> None:
    for layouts in ((None, None), (None, {})):
        quantization = read(*layouts)
        assert not quantization.is_quantized
        assert quantization.format_of("model.layers.0.mlp.up_proj") is None


def test_caches_alone_can_be_quantized() -> None:
    scheme = {"dynamic": False, "num_bits": 8, "type": "float"}
    original = {"quantization": {"quant_algo": None, "kv_cache_quant_algo": "FP8"}}
    flat = {"quant_method": "modelopt", "ignore": [], "kv_cache_scheme": scheme}
    assert read(original, flat) == Quantization(kv_cache="fp8")


@pytest.mark.parametrize(
    ("pattern", "covered", "not_covered"),
    [
        ("lm_head", "lm_head", "lm_head2"),
        ("model.layers.1", "model.layers.1.mlp.up_proj", "model.layers.10.mlp.up_proj"),
        (
            "model.layers.0.self_attn*",
            "model.layers.0.self_attn.q_proj",
            "model.layers.1.self_attn.q_proj",
        ),
        ("model.layers.0.mlp.*", "model.layers.0.mlp.up_proj", "model.layers.0.mlp"),
        ("*.q_proj", "model.layers.7.self_attn.q_proj", "model.layers.7.self_attn.q_proj2"),
        ("model.layers.?.mlp*", "model.layers.3.mlp.up_proj", "model.layers.13.mlp.up_proj"),
    ],
)
def test_exclusions(pattern: str, covered: str, not_covered: str) -> None:
    quantization = Quantization("nvfp4", {}, (pattern,))
    assert quantization.format_of(covered) is None
    assert quantization.excluded_by(covered) == pattern
    assert quantization.format_of(not_covered) is FORMATS["nvfp4"]


def test_a_format_of_its_own_beats_an_exclusion() -> None:
    assert (
        Quantization(None, {"lm_head": "fp8"}, ("lm_head",)).format_of("lm_head")
        is FORMATS["fp8"]
    )


REFUSED = [
    ("MXFP4", "blocks of 32 share a power of two; NVFP4 has blocks of 16"),
    ("mxfp4", "blocks of 32 share a power of two"),
    ("MXFP8", "blocks of 32 share a power of two; FP8 has one scale a tensor"),
    ("W4A8_MXFP4_FP8", "4-bit weights with 8-bit activations have no kernel"),
    ("W4A8_NVFP4_FP8", "4-bit weights with 8-bit activations have no kernel"),
    ("W4A8_AWQ", r"rescaled per channel \(pre_quant_scale\)"),
    ("W4A16_AWQ", r"rescaled per channel \(pre_quant_scale\)"),
    ("INT4_AWQ", r"rescaled per channel \(pre_quant_scale\)"),
    ("NVFP4_AWQ", r"rescaled per channel \(pre_quant_scale\)"),
    ("NVFP4_SVD", "adds a low-rank matrix"),
    ("nvfp4_svdquant", "adds a low-rank matrix"),
    ("FP8_PB_REAL", "its activations have scales of blocks"),
    ("W8A16", "integers"),
    ("W8A8_SQ_PER_CHANNEL", "integers"),
    ("INT8_SQ", "integers"),
    ("INT8_WO", "integers"),
    ("W4A16_GPTQ", "integers"),
    ("NVFP3", "none of FP8, NVFP4, W4A16_NVFP4"),
]


def test_every_refusal_by_name_is_tested() -> None:
    assert REFUSED_ALGOS.keys() == {algo.upper() for algo, _ in REFUSED} - {"NVFP3"}


@pytest.mark.parametrize(("algo", "reason"), REFUSED)
def test_formats_are_refused_by_name(algo: str, reason: str) -> None:
    words = f'quant_algo is "{algo}", which cannot be built: .*{reason}.*dflash-trt quantize'
    with pytest.raises(
        ConfigError, match=rf"target x \(hf_quant_config.json\): quantization.{words}"
    ):
        read({"quantization": {"quant_algo": algo}}, None)
    with pytest.raises(ConfigError, match=f"target x: quantization_config.{words}"):
        read(None, {"quant_algo": algo, "quant_method": "modelopt"})
    layers = {"a.b": {"quant_algo": "FP8"}, "a.c": {"quant_algo": algo}}
    with pytest.raises(ConfigError, match=f"quantized_layers.a.c.{words}"):
        read(
            {"quantization": {"quant_algo": "MIXED_PRECISION", "quantized_layers": layers}},
            None,
        )


@pytest.mark.parametrize(
    "method",
    [
        "gptq",
        "awq",
        "bitsandbytes",
        "fbgemm_fp8",
        "gguf",
        "quanto",
        "torchao",
    ],
)
def test_other_methods_are_refused_by_name(method: str) -> None:
    with pytest.raises(
        ConfigError,
        match=f'quant_method is "{method}", which cannot be built: .* FP8 or NVFP4 .*quantize',
    ):
        read(None, {"quant_method": method, "bits": 4})


def _changed(name: str, **changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both layouts, with keys of the flat one's group ("weights__num_bits") changed."""
    original, flat = copy.deepcopy(quant_configs(name, None, EXCLUDE))
    for path, value in changes.items():
        part, _, key = path.partition("__")
        group = flat["config_groups"]["group_0"]
        if key:
            group[part][key] = value
        else:
            group[part] = value
    return original, flat


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        (
            "nvfp4",
            {"weights__group_size": 32},
            "weights.group_size is 32, and only blocks of 16 can be built",
        ),
        (
            "fp8",
            {"weights__group_size": 128},
            "weights.group_size is 128, but FP8 has one scale a tensor",
        ),
        (
            "fp8",
            {"weights__strategy": "channel"},
            'weights.strategy is "channel", which cannot be built: one scale a',
        ),
        (
            "fp8",
            {"input_activations__dynamic": True},
            "input_activations.dynamic is true, and only scales that are in",
        ),
        (
            "fp8",
            {"weights__type": "int"},
            "8-bit int and 8-bit float, which cannot be built: that is none of FP8",
        ),
        (
            "fp8",
            {"input_activations": None},
            "8-bit float and unquantized, which cannot be built",
        ),
        (
            "nvfp4",
            {"input_activations__num_bits": 8},
            "4-bit float and 8-bit float, which cannot be built",
        ),
        (
            "nvfp4",
            {"pre_quant_scale": True},
            "pre_quant_scale is true, which cannot be built: .*per channel",
        ),
        ("nvfp4", {"weights": "NVFP4"}, 'weights is "NVFP4", expected an object'),
    ],
)
def test_groups_are_refused_by_their_numbers(
    name: str, changes: dict[str, Any], words: str
) -> None:
    original, flat = _changed(name, **changes)
    for layouts in ((None, flat), (original, flat)):
        with pytest.raises(
            ConfigError, match=f"quantization_config.config_groups.group_0.*{words}"
        ):
            read(*layouts)


@pytest.mark.parametrize(
    ("details", "words"),
    [
        (
            {"quant_algo": "NVFP4", "group_size": 32},
            "group_size is 32, and only blocks of 16 can be built",
        ),
        (
            {"quant_algo": "FP8", "group_size": 128},
            "group_size is 128, but FP8 has one scale a tensor",
        ),
        (
            {"quant_algo": "NVFP4", "pre_quant_scale": True},
            "pre_quant_scale is true, which cannot be built",
        ),
        (
            {"quant_algo": "MIXED_PRECISION"},
            "quantized_layers is missing, and quant_algo MIXED_PRECISION needs it",
        ),
        (
            {"quant_algo": "MIXED_PRECISION", "quantized_layers": {}},
            "quantized_layers is missing",
        ),
        (
            {"quant_algo": "MIXED_PRECISION", "quantized_layers": {"a": 1}},
            "quantized_layers.a is 1, expected an object",
        ),
        (
            {"quant_algo": "MIXED_PRECISION", "quantized_layers": {"a": {}}},
            "quantized_layers.a.quant_algo is missing",
        ),
        ({"quant_algo": 8}, "quant_algo is 8, expected a string"),
        (
            {"quant_algo": "FP8", "kv_cache_quant_algo": "NVFP4"},
            'kv_cache_quant_algo is "NVFP4", and caches can be',
        ),
        (
            {"quant_algo": "FP8", "exclude_modules": "lm_head"},
            'exclude_modules is "lm_head", expected a list',
        ),
        (
            {"quant_algo": "FP8", "exclude_modules": ["re:(.*)head"]},
            "of regular expressions, names with",
        ),
        (
            {"quant_algo": "FP8", "exclude_modules": ["x"] * (MAX_PATTERNS + 1)},
            "has 4097 entries, expected at most 4096",
        ),
    ],
)
def test_details_that_cannot_be_read(details: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read({"quantization": details}, None)


def test_configurations_that_say_nothing() -> None:
    with pytest.raises(ConfigError, match=r"quantization is missing\. It has no safe default"):
        read({"producer": {"name": "modelopt"}}, None)
    words = r"quant_algo is missing, and so are config_groups: .* or remove"
    with pytest.raises(ConfigError, match=words):
        read(None, {"quant_method": "modelopt"})


def test_an_empty_group() -> None:
    _, flat = quant_configs("fp8", None, EXCLUDE)
    flat["config_groups"]["group_1"] = None
    with pytest.raises(
        ConfigError, match=r"x: quantization_config.config_groups.group_1 is empty. Remove it."
    ):
        read(None, flat)


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"type": "int", "num_bits": 8}, "8-bit int"),
        ({"type": "float", "num_bits": 4}, "4-bit float"),
    ],
)
def test_caches_in_other_numbers(numbers: dict[str, Any], words: str) -> None:
    _, flat = quant_configs("fp8", None, EXCLUDE, kv_cache=True)
    flat["kv_cache_scheme"] |= numbers
    with pytest.raises(
        ConfigError,
        match=f"kv_cache_scheme is {words}, and caches can be 8-bit float. Remove it.",
    ):
        read(None, flat)


def test_a_module_in_two_groups() -> None:
    _, flat = quant_configs("fp8", MIXED, ())
    del flat["quant_algo"], flat["quantized_layers"]
    flat["config_groups"]["group_1"]["targets"] = ["model.layers.0.self_attn.q_proj"]
    with pytest.raises(ConfigError, match=r"q_proj., which another group stores as fp8"):
        read(None, flat)


def test_archs_of_formats_exist() -> None:
    for row in (*FORMATS.values(), MXFP4):
        assert set(row.archs) <= set(ARCHS)
        assert "cpu" in row.archs
    assert [row.weight_bits() for row in FORMATS.values()] == [8.0, 4.5, 4.5]
    assert MXFP4.weight_bits() == 4.25
    assert set(MXFP4.archs) == set(ARCHS)
