"""Quantized checkpoints of other makers load in place: formats, numbers, exclusions, refusals."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fixtures.published import (
    SCHEMES,
    numbers,
    published_copy,
    published_experts,
    quantization_config,
    store_weight,
    twin_of,
)
from tests.fixtures.quantized import read_tensors, write_tensors
from tests.fixtures.tiny_models import tiny_drafter, tiny_target
from trtllm_dflash.checkpoint.dequantize import dequantized
from trtllm_dflash.checkpoint.finite import check_finite
from trtllm_dflash.checkpoint.formats import (
    FP8_BLOCK,
    LINEAR_FORMATS,
    W8A16_FP8,
    Holds,
    Layout,
    Quantization,
)
from trtllm_dflash.checkpoint.loader import load_drafter, load_target
from trtllm_dflash.checkpoint.module_patterns import MAX_ALTERNATIVES, patterns_of
from trtllm_dflash.checkpoint.quant_config import read_quantization
from trtllm_dflash.errors import CheckpointError, ConfigError
from trtllm_dflash.graph.kv_scales import read_kv_scales
from trtllm_dflash.graph.step import build_step

UP = "model.layers.0.mlp.up_proj"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_target(tmp_path_factory.mktemp("source") / "t", "qwen3", num_layers=2)


def _read(config: dict[str, Any]) -> Quantization:
    return read_quantization({"quantization_config": config}, None, "target x")


@pytest.mark.parametrize("scale_dtype", ["F32", "BF16"])
@pytest.mark.parametrize("name", SCHEMES)
def test_numbers_are_the_makers(
    source: Path, name: str, scale_dtype: str, tmp_path: Path
) -> None:
    is_fine_grained = SCHEMES[name].method == "fp8"
    directory = published_copy(
        source, tmp_path / "q", name, scale_dtype=scale_dtype, kv_cache=not is_fine_grained
    )
    checkpoint = load_target(directory)
    check_finite(checkpoint)
    fmt = LINEAR_FORMATS[SCHEMES[name].expected]
    assert len(checkpoint.formats) == 2 * 7
    assert set(checkpoint.formats.values()) == {fmt}
    assert checkpoint.stored_as == f"{fmt.algo} and BF16"
    wanted = read_tensors(twin_of(directory) / "model.safetensors")
    rows = np.array([3, 0, 17])
    for module in checkpoint.formats:
        got = dequantized(checkpoint.tensors, module, fmt)
        np.testing.assert_array_equal(got, wanted[f"{module}.weight"])
        some = dequantized(checkpoint.tensors, module, fmt, rows)
        np.testing.assert_array_equal(some, got[rows])
    stored = read_tensors(directory / "model.safetensors")
    assert len(checkpoint.tensors) + len(checkpoint.ignored) == len(stored)
    scales = read_kv_scales(checkpoint)
    if is_fine_grained:
        assert scales is None
    else:
        key = stored["model.layers.1.self_attn.k_scale"]
        assert scales is not None
        assert scales[1][0] == float(key[0])


@pytest.mark.parametrize("shape", [(256, 384), (300, 208), (48, 80), (1, 129)])
def test_blocks_may_be_partial(shape: tuple[int, int], tmp_path: Path) -> None:
    from trtllm_dflash.checkpoint.safetensors import read_tensor_infos

    weight = np.random.default_rng(0).standard_normal(shape)
    stored = store_weight(weight, SCHEMES["fp8_block"])
    write_tensors(tmp_path / "x", {f"m.{key}": value for key, value in stored.items()})
    infos = read_tensor_infos(tmp_path / "x")
    fmt = LINEAR_FORMATS["fp8_block"]
    np.testing.assert_array_equal(dequantized(infos, "m", fmt), numbers(stored))
    rows = np.array([0, shape[0] - 1])
    np.testing.assert_array_equal(dequantized(infos, "m", fmt, rows), numbers(stored)[rows])


@pytest.mark.parametrize("fused", [False, True])
def test_experts_in_fine_grained_fp8(fused: bool, tmp_path: Path) -> None:
    checkpoint = load_target(published_experts(tmp_path, "fine_grained", fused=fused))
    check_finite(checkpoint)
    wanted = read_tensors(twin_of(tmp_path / "q") / "model.safetensors")
    experts = [module for module in checkpoint.formats if ".experts." in module]
    assert len(experts) == 3 * 3
    for module in experts:
        fmt = checkpoint.formats[module]
        got = dequantized(checkpoint.tensors, module, fmt)
        np.testing.assert_array_equal(got, wanted[f"{module}.weight"])
    assert checkpoint.expert_formats == (FP8_BLOCK,)


@pytest.mark.parametrize("name", ["fp8", "fp8_channel"])
def test_experts_in_fp8_are_read_as_weights_alone(name: str, tmp_path: Path) -> None:
    checkpoint = load_target(published_experts(tmp_path, name, fused=False))
    formats = {
        ".experts." in module: fmt.name for module, fmt in sorted(checkpoint.formats.items())
    }
    assert formats == {True: "w8a16_fp8", False: SCHEMES[name].expected}
    assert checkpoint.expert_formats == (W8A16_FP8,)


# Only transformers stores quantized experts as one tensor.
@pytest.mark.parametrize(
    ("name", "fused"),
    [
        ("fine_grained", True),
        *((name, False) for name in ("fine_grained", "fp8", "fp8_channel")),
    ],
)
def test_bytes_of_fp8_experts(name: str, fused: bool, tmp_path: Path) -> None:
    """One byte a weight with our kernels, and 4 bytes a block or row; else the engine's type."""
    checkpoint = load_target(published_experts(tmp_path, name, fused=fused))
    for module in checkpoint.formats:
        if ".experts." not in module:
            continue
        rows, columns = checkpoint.tensors[f"{module}.weight"].shape
        scales = rows if name != "fine_grained" else -(-rows // 128) * -(-columns // 128)
        for holds in Holds:
            is_held = holds is Holds.KERNELS
            wanted = (rows * columns, 4 * scales) if is_held else (2 * rows * columns, 0)
            got = [
                checkpoint.engine_bytes(f"{module}.{last}", 2, holds)
                for last in ("weight", "weight_scale")
            ]
            assert tuple(got) == wanted


@pytest.mark.parametrize("scale_dtype", ["F32", "BF16"])
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_a_block_of_scale_zero_is_zeros(
    source: Path, scale_dtype: str, zero: float, tmp_path: Path
) -> None:
    """Whatever its codes are: transformers and compressed-tensors compute that product too."""
    directory = published_copy(source, tmp_path / "q", "fine_grained", scale_dtype=scale_dtype)
    info = load_target(directory).tensors[f"{UP}.weight_scale"]
    data = bytearray((directory / "model.safetensors").read_bytes())
    value = np.array([zero], info.numpy_dtype).tobytes()
    data[info.offset : info.offset + len(value)] = value
    (directory / "model.safetensors").write_bytes(data)
    checkpoint = load_target(directory)
    check_finite(checkpoint)
    assert not dequantized(checkpoint.tensors, UP, checkpoint.formats[UP]).any()


def test_blocks_that_cross_from_gate_to_up(tmp_path: Path) -> None:
    target = published_experts(tmp_path, "fine_grained", fused=True)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | {"moe_intermediate_size": 64}))
    with pytest.raises(
        CheckpointError, match=r"gate_up_proj_scale_inv has .* cross from gate to"
    ):
        load_target(target)


def test_bytes_of_an_engine(source: Path, tmp_path: Path) -> None:
    """Codes stay a byte, with 4 bytes a row or block; without our kernels blocks become BF16."""
    plain = load_target(source)
    num_weights = {
        module: int(np.prod(plain.tensors[f"{module}.weight"].shape))
        for module in load_target(published_copy(source, tmp_path / "x", "fp8")).formats
    }
    rows = sum(plain.tensors[f"{module}.weight"].shape[0] for module in num_weights)
    linears = sum(num_weights.values())
    kept = {"fp8": linears, "fp8_channel": linears - 4 * rows}
    saved = {(name, Holds.COMPILED): size for name, size in kept.items()}
    saved |= {(name, Holds.KERNELS): size for name, size in kept.items()}
    blocks = 0
    for module in num_weights:
        out_size, in_size = plain.tensors[f"{module}.weight"].shape
        blocks += -(-out_size // 128) * -(-in_size // 128)
    saved["fp8_block", Holds.COMPILED] = 0
    saved["fp8_block", Holds.KERNELS] = linears - 4 * blocks
    for (name, holds), expected in saved.items():
        checkpoint = load_target(published_copy(source, tmp_path / f"{name}{holds.name}", name))
        assert checkpoint.num_parameters == plain.num_parameters
        counted = checkpoint.weight_bytes(2, holds)
        assert plain.weight_bytes(2, holds) - counted == expected
        assert checkpoint.weight_bytes(4, Holds.NOTHING) == 4 * plain.num_parameters


def test_what_transformers_leaves_out_unnamed(tmp_path: Path) -> None:
    """Blocks divide neither 48 nor 80: such weights are plain in its files."""
    source = tiny_target(tmp_path / "source", num_layers=1, dtype="BF16")
    target = published_copy(source, tmp_path / "q", "fine_grained")
    tensors = read_tensors(target / "model.safetensors")
    dtypes = {"float32": "F32", "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3"}
    stored = {name: (dtypes[array.dtype.name], array) for name, array in tensors.items()}
    stored[f"{UP}.weight"] = (
        "BF16",
        read_tensors(source / "model.safetensors")[f"{UP}.weight"],
    )
    del stored[f"{UP}.weight_scale_inv"]
    write_tensors(target / "model.safetensors", stored)
    checkpoint = load_target(target)
    assert UP not in checkpoint.formats
    assert len(checkpoint.formats) == 6


@pytest.mark.parametrize("spelled", ["modules_to_not_convert", "ignored_layers"])
def test_exclusions_of_fine_grained_fp8(spelled: str) -> None:
    """Entries are whole names, what is inside of them, or ends of names."""
    config = quantization_config("fine_grained")
    del config["modules_to_not_convert"]
    assert _read(config).format_of("lm_head") is None
    quantization = _read(config | {spelled: ["model.layers.1", "mlp.gate", "lm_head"]})
    assert quantization.layout is Layout.FINE_GRAINED_FP8
    plain = ("model.layers.1.mlp.up_proj", "model.layers.0.mlp.gate", "lm_head")
    assert [quantization.format_of(module) for module in plain] == [None] * 3
    for module in ("model.layers.10.mlp.up_proj", "model.layers.0.mlp.gate_proj"):
        assert quantization.format_of(module) is LINEAR_FORMATS["fp8_block"]


def test_groups_with_targets_of_their_own() -> None:
    config = quantization_config("nvfp4")
    config["format"] = "mixed-precision"
    config["config_groups"]["group_1"] = copy.deepcopy(
        quantization_config("fp8_channel")["config_groups"]["group_0"]
    ) | {"targets": ["re:.*self_attn.(q|k|v)_proj$", "model.layers.1.mlp.down_proj"]}
    config["ignore"] = ["lm_head", "re:.*layers[.]0[.].*k_proj"]
    quantization = _read(config)
    found = {
        module: quantization.format_of(module)
        for module in (
            "model.layers.0.self_attn.q_proj",
            "model.layers.0.self_attn.k_proj",
            "model.layers.0.self_attn.o_proj",
            "model.layers.1.mlp.down_proj",
            "lm_head",
        )
    }
    names = [fmt and fmt.name for fmt in found.values()]
    assert names == ["w8a16_fp8", None, "nvfp4", "w8a16_fp8", None]


@pytest.mark.parametrize(
    ("expression", "patterns"),
    [
        (".*lm_head", ["*lm_head*"]),
        ("^lm_head$", ["lm_head"]),
        (r".*mlp\.gate$", ["*mlp.gate"]),
        (".*self_attn.(q|k)_proj", ["*self_attn?k_proj*", "*self_attn?q_proj*"]),
        ("visual[.].+", ["visual.?*"]),
        (r".*layers\.\d+\.mlp", None),
        ("(a+)+$", None),
        ("(?=x)", None),
        ("a" + "(b|c)" * 7, None),
    ],
)
def test_regular_expressions(expression: str, patterns: list[str] | None) -> None:
    assert MAX_ALTERNATIVES < 2**7
    assert patterns_of(expression) == patterns


def _changed(name: str, path: str, value: Any) -> dict[str, Any]:
    """Return a configuration with one key changed; `path` begins in group_0 with "group."."""
    config = quantization_config(name)
    keys = path.split(".")
    place = config
    if keys[0] == "group":
        place = config["config_groups"]["group_0"]
        keys = keys[1:]
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    return config


REFUSED = [
    ("fine_grained", "scale_fmt", "ue8m0", "exponents, a byte each, are not read"),
    ("fine_grained", "fmt", "e5m2", 'expected "e4m3": weights in another type'),
    ("fine_grained", "expert_dtype", "fp4", "experts in 4 bits"),
    ("fine_grained", "weight_block_size", [1, 128], "only blocks of 128 x 128 are read"),
    ("fine_grained", "activation_scheme", "none", "expected dynamic or static"),
    ("fine_grained", "modules_to_convert", ["model.embed_tokens"], "tables in FP8"),
    ("fp8", "format", "pack-quantized", "its weights are integers"),
    ("fp8", "format", "mxfp8-quantized", "blocks of 32 share a power of two"),
    ("fp8", "config_groups", {}, "config_groups is missing"),
    ("fp8", "config_groups", {"group_0": None}, "config_groups.group_0 is empty"),
    ("fp8", "sparsity_config", {"format": "sparse-24-bitmask"}, "without their zeros"),
    ("fp8", "transform_config", {"config_groups": {"R1": {}}}, "a matrix has turned"),
    ("fp8", "kv_cache_scheme", {"type": "int", "num_bits": 8}, "8-bit int, tensor, static"),
    (
        "fp8",
        "kv_cache_scheme",
        {"type": "float", "num_bits": 8, "dynamic": True},
        "8-bit float, tensor, dynamic",
    ),
    ("fp8", "ignore", ["re:(a+)+$"], r"names with \.\* and \(a\|b\) are read"),
    ("fp8", "group.format", "int-quantized", "its weights are integers"),
    ("fp8", "group.weights.symmetric", False, "no code has a zero point"),
    ("fp8", "group.weights.dynamic", True, "weights have their scales stored"),
    ("fp8", "group.weights.type", "int", 'is 8, of "int", strategy "tensor"'),
    ("fp8", "group.weights.strategy", "group", 'is 8, of "float", strategy "group"'),
    ("fp8", "group.weights", None, "weights is missing"),
    ("fp8_block", "group.weights.block_structure", [64, 64], "only blocks of 128 x 128"),
    ("nvfp4", "group.weights.group_size", 32, "groups of 32"),
    ("nvfp4", "group.weights.num_bits", 6, "is 6, of"),
]


@pytest.mark.parametrize(("name", "path", "value", "words"), REFUSED)
def test_refused_by_name(name: str, path: str, value: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=rf"target x: quantization_config\..*{words}"):
        _read(_changed(name, path, value))


def test_two_groups_of_all_linears() -> None:
    config = quantization_config("fp8")
    config["config_groups"]["group_1"] = quantization_config("nvfp4")["config_groups"][
        "group_0"
    ]
    with pytest.raises(ConfigError, match=r'group_1\.targets contains "Linear", which another'):
        _read(config)


def test_modelopts_file_beside_another_method() -> None:
    config = {"quantization_config": quantization_config("fp8")}
    with pytest.raises(
        ConfigError, match=r"hf_quant_config.json is there, which ModelOpt writes"
    ):
        read_quantization(config, {"quantization": {"quant_algo": "FP8"}}, "x")


def test_older_spelling_of_the_section() -> None:
    section = quantization_config("fp8_channel")
    del section["quant_method"]
    quantization = read_quantization({"compression_config": section}, None, "x")
    assert quantization == _read(quantization_config("fp8_channel"))


@pytest.mark.parametrize("name", ["fine_grained", "fp8_channel", "nvfp4a16"])
def test_drafters(source: Path, name: str, tmp_path: Path) -> None:
    """Their projection of features stays as it is, as in every format."""
    drafter = tiny_drafter(tmp_path / "drafter", source, num_layers=1, taps=(0,), head_dim=16)
    checkpoint = load_drafter(published_copy(drafter, tmp_path / "q", name, exclude=("fc",)))
    check_finite(checkpoint)
    assert {fmt.name for fmt in checkpoint.formats.values()} == {SCHEMES[name].expected}
    assert len(checkpoint.formats) == 7
    wanted = read_tensors(twin_of(tmp_path / "q") / "model.safetensors")
    for module, fmt in checkpoint.formats.items():
        got = dequantized(checkpoint.tensors, module, fmt)
        np.testing.assert_array_equal(got, wanted[f"{module}.weight"])
    with pytest.raises(CheckpointError, match=r"fc is .*, and it must not be quantized"):
        load_drafter(published_copy(drafter, tmp_path / "all", name, exclude=()))


def test_rows_of_a_quantized_head_have_their_own_scales(tmp_path: Path) -> None:
    """A draft vocabulary takes some rows of the head, and their scales with them."""
    source = tiny_target(tmp_path / "source", num_layers=2, dtype="BF16")
    target = load_target(published_copy(source, tmp_path / "q", "fp8_channel", exclude=()))
    drafter = tiny_drafter(tmp_path / "drafter", source, num_layers=1, taps=(0,), dtype="BF16")
    rows = np.array([3, 5, 8, 90, 12, 41])
    model = build_step(
        target,
        load_drafter(drafter),
        dtype="bfloat16",
        cache_len=64,
        block_size=4,
        draft_vocab=rows,
    )
    stored = read_tensors(tmp_path / "q" / "model.safetensors")
    scales = stored["lm_head.weight_scale"].reshape(-1)
    found = [
        value.const_value.numpy()
        for value in model.graph.initializers.values()
        if value.const_value is not None and value.const_value.shape == [6]
    ]
    assert any(np.array_equal(array, scales[rows]) for array in found)
