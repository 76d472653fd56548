"""Damage to quantized checkpoints of other makers: fine-grained FP8 and compressed-tensors."""

from __future__ import annotations

import numpy as np

from tests.bad_checkpoints.make_bad import (
    GOOD,
    BadCheckpoint,
    bad,
    good_quantized,
    pack_bytes,
)
from tests.bad_checkpoints.quantized_cases import _poke, _repack
from tests.fixtures.published import quantization_config

BLOCKS, ROWS, NVFP4 = "fine-grained fp8 target", "fp8 rows target", "compressed nvfp4 target"
LAYER = "model.layers.0."
UP, DOWN = f"{LAYER}mlp.up_proj", f"{LAYER}mlp.down_proj"


def _renamed(algo: str, endings: dict[str, str], config: str) -> BadCheckpoint:
    """Return a good checkpoint of ModelOpt with other names and another configuration."""
    model = good_quantized(algo)
    tensors: dict[str, tuple[str, list[int], bytes]] = {}
    for name, entry in model.weights.header.items():
        begin, end = entry["data_offsets"]
        module, _, last = name.rpartition(".")
        stored = entry["dtype"], entry["shape"], bytes(model.weights.data[begin:end])
        is_quantized = f"{module}.weight_scale" in model.weights.header
        if is_quantized and last in endings:
            name = f"{module}.{endings[last]}"
        if is_quantized and last == "input_scale" and algo == "FP8":
            continue  # these have dynamic activations
        if is_quantized and not stored[1]:
            stored = stored[0], [1], stored[2]
        tensors[name] = stored
    model.weights = pack_bytes(tensors)
    model.config["quantization_config"] = quantization_config(config)
    return model


def good_blocks() -> BadCheckpoint:
    """Return a one-layer Llama in fine-grained FP8, every weight less than a block."""
    model = _renamed("FP8", {"weight_scale": "weight_scale_inv"}, "fine_grained")
    for name, entry in model.weights.header.items():
        if name.endswith("_scale_inv"):
            entry["shape"] = [1, 1]
    return model


def good_rows() -> BadCheckpoint:
    """Return a one-layer Llama in compressed-tensors' FP8 with a scale a row."""
    model = _renamed("FP8", {}, "fp8_channel")
    rows = {
        name: ("F32", [model.weights.header[f"{name.removesuffix('_scale')}"]["shape"][0], 1])
        for name in model.weights.header
        if name.endswith("weight_scale")
    }
    _repack(model, dict(rows))
    for name, (_, shape) in rows.items():
        begin, end = model.entry(name)["data_offsets"]
        scales = np.linspace(1 / 128, 1 / 64, shape[0], dtype=np.float32)
        model.weights.data[begin:end] = scales.tobytes()
    return model


def good_nvfp4() -> BadCheckpoint:
    """Return a one-layer Llama in compressed-tensors' NVFP4."""
    endings = {
        "weight": "weight_packed",
        "weight_scale_2": "weight_global_scale",
        "input_scale": "input_global_scale",
    }
    return _renamed("NVFP4", endings, "nvfp4")


GOOD |= {BLOCKS: good_blocks, ROWS: good_rows, NVFP4: good_nvfp4}


@bad(r"missing: model.layers.0.mlp.up_proj.weight_scale_inv \[1, 1\]", base=BLOCKS)
def block_without_scales(model: BadCheckpoint) -> None:
    _repack(model, {f"{UP}.weight_scale_inv": None})


@bad(
    r"wrong shape: .*up_proj.weight_scale_inv has \[48, 1\], expected \[1, 1\] ="
    r" \[ceil\(intermediate_size/128\), ceil\(hidden_size/128\)\]",
    base=BLOCKS,
)
def scales_of_rows_where_blocks_are_stated(model: BadCheckpoint) -> None:
    _repack(model, {f"{UP}.weight_scale_inv": ("F32", [48, 1])})


@bad(r"wrong dtype: .*weight_scale_inv is U8 \(supported: F32, F16, BF16\)", base=BLOCKS)
def scales_that_are_exponents(model: BadCheckpoint) -> None:
    _repack(model, {f"{UP}.weight_scale_inv": ("U8", [1, 1])})


@bad('scale_fmt is "ue8m0", expected "float": scales that are exponents', base=BLOCKS)
def scales_stated_as_exponents(model: BadCheckpoint) -> None:
    model.config["quantization_config"] |= {"scale_fmt": "ue8m0"}


@bad(r"up_proj.weight_scale_inv has nan at index \[0, 0\]. A scale is a finite", base=BLOCKS)
def scale_of_a_block_nan(model: BadCheckpoint) -> None:
    _poke(model, f"{UP}.weight_scale_inv", float("nan"))


@bad(r"up_proj.weight_scale_inv has -0.5 at index \[0, 0\]. A scale is a finite", base=BLOCKS)
def scale_of_a_block_negative(model: BadCheckpoint) -> None:
    _poke(model, f"{UP}.weight_scale_inv", -0.5)


@bad(r"up_proj.weight_scale_inv has inf at index \[0, 0\]. A scale is a finite", base=BLOCKS)
def scale_of_a_block_infinite(model: BadCheckpoint) -> None:
    _poke(model, f"{UP}.weight_scale_inv", float("inf"))


@bad(r"up_proj.weight_scale has 0.0 at index \[5, 0\]. A scale is a finite", base=ROWS)
def scale_of_a_row_zero(model: BadCheckpoint) -> None:
    _poke(model, f"{UP}.weight_scale", 0.0, 5)


@bad(r"up_proj.weight_scale has -1.0 at index \[5, 0\]. A scale is a finite", base=ROWS)
def scale_of_a_row_negative(model: BadCheckpoint) -> None:
    _poke(model, f"{UP}.weight_scale", -1.0, 5)


@bad(r"down_proj.weight has nan at index \[0, 3\]", base=ROWS)
def code_nan(model: BadCheckpoint) -> None:
    model.weights.data[model.entry(f"{DOWN}.weight")["data_offsets"][0] + 3] = 0x7F


@bad(r"wrong shape: .*up_proj.weight_scale has \[47, 1\], expected \[48, 1\]", base=ROWS)
def one_row_without_scale(model: BadCheckpoint) -> None:
    _repack(model, {f"{UP}.weight_scale": ("F32", [47, 1])})


@bad(r"wrong dtype: .*up_proj.weight is I8 \(supported: F8_E4M3\)", base=ROWS)
def integers_under_a_float_label(model: BadCheckpoint) -> None:
    _repack(model, {f"{UP}.weight": ("I8", [48, 16])})


@bad(r"unexpected: .*up_proj.weight_zero_point \[48, 1\]", base=ROWS)
def zero_points(model: BadCheckpoint) -> None:
    _repack(model, {f"{UP}.weight_zero_point": ("F32", [48, 1])})


@bad('format is "pack-quantized", which cannot be built: its weights are integers', base=ROWS)
def packed_integers(model: BadCheckpoint) -> None:
    model.config["quantization_config"] |= {"format": "pack-quantized"}


@bad(r"missing: model.layers.0.mlp.up_proj.weight_global_scale \[\]", base=NVFP4)
def packed_without_global_scale(model: BadCheckpoint) -> None:
    _repack(model, {f"{UP}.weight_global_scale": None})


@bad("up_proj.input_scale is missing: NVFP4 quantizes activations too", base=NVFP4)
def packed_without_input_global_scale(model: BadCheckpoint) -> None:
    _repack(model, {f"{UP}.input_global_scale": None})


@bad(r"up_proj.weight_packed and .*up_proj.weight are both there", base=NVFP4)
def packed_and_plain(model: BadCheckpoint) -> None:
    _repack(model, {f"{UP}.weight": ("BF16", [48, 16])})


@bad(r"up_proj.weight_global_scale has 0.0 at index \[0\]. A scale is a finite", base=NVFP4)
def divisor_zero(model: BadCheckpoint) -> None:
    _poke(model, f"{UP}.weight_global_scale", 0.0)


@bad(
    r"up_proj.weight_global_scale has 1.4\d+e-45 at index \[0\]. A scale is a finite",
    base=NVFP4,
)
def divisor_that_has_no_reciprocal(model: BadCheckpoint) -> None:
    _poke(model, f"{UP}.weight_global_scale", float(np.float32(1e-45)))


@bad(
    r"input_global_scale \(21 such tensors\) shows a compressed-tensors checkpoint, and",
    base=NVFP4,
)
def compressed_without_configuration(model: BadCheckpoint) -> None:
    del model.config["quantization_config"]


@bad(r"group_0.weights.num_bits is 4, .*, groups of 32, which cannot be built", base=NVFP4)
def mxfp4_groups(model: BadCheckpoint) -> None:
    weights = model.config["quantization_config"]["config_groups"]["group_0"]["weights"]
    weights["group_size"] = 32
