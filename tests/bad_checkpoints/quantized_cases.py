"""Damage to quantized linears: scales that are none, codes that would load unscaled, formats that
are not built.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np

from tests.bad_checkpoints.make_bad import BadCheckpoint, bad, pack, pack_bytes

Q, UP, DOWN = (
    f"model.layers.0.{name}" for name in ("self_attn.q_proj", "mlp.up_proj", "mlp.down_proj")
)
ADVICE = "A scale is a finite number above zero, and ModelOpt writes others for a weight"
EXCLUSIONS = ["lm_head", "model.embed_tokens"]


def _poke(model: BadCheckpoint, name: str, value: float, index: int = 0) -> None:
    """Overwrite one number of a scale tensor."""
    entry = model.entry(name)
    dtype = {"F32": np.float32, "F8_E4M3": ml_dtypes.float8_e4m3fn}[entry["dtype"]]
    begin = entry["data_offsets"][0] + index * np.dtype(dtype).itemsize
    blob = np.array(value, dtype).tobytes()
    model.weights.data[begin : begin + len(blob)] = blob


def _repack(model: BadCheckpoint, changes: dict[str, tuple[str, list[int]] | None]) -> None:
    """Store the same tensors with some changed or added (dtype, shape; every byte 1) or (None)
    removed.
    """
    tensors = {}
    for name, entry in model.weights.header.items():
        begin, end = entry["data_offsets"]
        tensors[name] = (entry["dtype"], entry["shape"], bytes(model.weights.data[begin:end]))
    bits = {"F32": 32, "BF16": 16, "F16": 16, "F8_E4M3": 8, "U8": 8, "I8": 8, "I32": 32}
    for name, change in changes.items():
        if change is None:
            del tensors[name]
        else:
            dtype, shape = change
            tensors[name] = (dtype, shape, b"\1" * (int(np.prod(shape)) * bits[dtype] // 8))
    model.weights = pack_bytes(tensors)


def _exclude(model: BadCheckpoint, *modules: str) -> None:
    model.config["quantization_config"] |= {"ignore": list(modules)}


@bad(rf"q_proj.weight_scale has nan at index \[\]. {ADVICE}", base="fp8 target")
def scale_nan(model: BadCheckpoint) -> None:
    _poke(model, f"{Q}.weight_scale", float("nan"))


@bad(rf"q_proj.input_scale has inf at index \[\]. {ADVICE}", base="fp8 target")
def scale_infinite(model: BadCheckpoint) -> None:
    _poke(model, f"{Q}.input_scale", float("inf"))


@bad(rf"up_proj.weight_scale has 0.0 at index \[\]. {ADVICE}", base="fp8 target")
def scale_zero(model: BadCheckpoint) -> None:
    _poke(model, f"{UP}.weight_scale", 0.0)


@bad(rf"up_proj.input_scale has -0.5 at index \[\]. {ADVICE}", base="fp8 target")
def scale_negative(model: BadCheckpoint) -> None:
    _poke(model, f"{UP}.input_scale", -0.5)


@bad(rf"down_proj.weight_scale has nan at index \[1, 2\]. {ADVICE}", base="nvfp4 target")
def block_scale_nan(model: BadCheckpoint) -> None:
    _poke(model, f"{DOWN}.weight_scale", float("nan"), 5)


@bad(rf"down_proj.weight_scale has 0.0 at index \[1, 2\]. {ADVICE}", base="nvfp4 target")
def block_scale_zero(model: BadCheckpoint) -> None:
    _poke(model, f"{DOWN}.weight_scale", 0.0, 5)


@bad(rf"down_proj.weight_scale has -2.0 at index \[0, 1\]. {ADVICE}", base="nvfp4 target")
def block_scale_negative(model: BadCheckpoint) -> None:
    _poke(model, f"{DOWN}.weight_scale", -2.0, 1)


@bad(rf"down_proj.weight_scale_2 has 0.0 at index \[\]. {ADVICE}", base="w4a16 target")
def global_scale_zero(model: BadCheckpoint) -> None:
    _poke(model, f"{DOWN}.weight_scale_2", 0.0)


@bad(
    rf"q_proj.weight has nan at index \[0, 0\]. {ADVICE} .* that is zero throughout",
    base="fp8 target",
)
def all_zero_weight_in_fp8(model: BadCheckpoint) -> None:
    """Store what ModelOpt 0.47 writes for it: 0 / 0 in every byte."""
    begin, end = model.entry(f"{Q}.weight")["data_offsets"]
    model.weights.data[begin:end] = b"\x7f" * (end - begin)
    _poke(model, f"{Q}.weight_scale", 0.0)


@bad(
    rf"q_proj.weight_scale has nan at index \[0, 0\]. {ADVICE} .* that is zero throughout",
    base="nvfp4 target",
)
def all_zero_weight_in_nvfp4(model: BadCheckpoint) -> None:
    begin, end = model.entry(f"{Q}.weight_scale")["data_offsets"]
    model.weights.data[begin:end] = b"\x7f" * (end - begin)
    _poke(model, f"{Q}.weight_scale_2", 0.0)


@bad(
    "q_proj.input_scale is missing: FP8 quantizes activations too, and was not calibrated",
    base="fp8 target",
)
def fp8_without_input_scale(model: BadCheckpoint) -> None:
    _repack(model, {f"{Q}.input_scale": None})


@bad(
    "q_proj.input_scale is missing: NVFP4 quantizes activations too, and was not calibrated",
    base="nvfp4 target",
)
def nvfp4_without_input_scale(model: BadCheckpoint) -> None:
    _repack(model, {f"{Q}.input_scale": None})


@bad(
    "q_proj.input_scale is there, but W4A16_NVFP4 leaves activations as they are",
    base="w4a16 target",
)
def weights_only_with_input_scale(model: BadCheckpoint) -> None:
    _repack(model, {f"{Q}.input_scale": ("F32", [])})


@bad(r"missing: model.layers.0.self_attn.q_proj.weight_scale \[\]", base="fp8 target")
def fp8_without_weight_scale(model: BadCheckpoint) -> None:
    _repack(model, {f"{Q}.weight_scale": None})


@bad(r"missing: model.layers.0.self_attn.q_proj.weight_scale_2 \[\]", base="nvfp4 target")
def nvfp4_without_global_scale(model: BadCheckpoint) -> None:
    _repack(model, {f"{Q}.weight_scale_2": None})


@bad(
    "q_proj.weight is F8_E4M3 and would load unscaled, but neither hf_quant_config.json nor"
    " config.json's quantization_config says",
    base="fp8 target",
)
def fp8_without_configuration(model: BadCheckpoint) -> None:
    del model.config["quantization_config"]


@bad(
    "q_proj.weight is U8 and would load unscaled, but neither hf_quant_config.json nor",
    base="nvfp4 drafter",
)
def nvfp4_drafter_without_configuration(model: BadCheckpoint) -> None:
    del model.config["quantization_config"]


@bad(
    r"q_proj.weight is F8_E4M3 and would load unscaled, but .*q_proj is excluded by"
    r" '\*.self_attn\*'",
    base="fp8 target",
)
def fp8_weight_of_an_excluded_module(model: BadCheckpoint) -> None:
    _exclude(model, *EXCLUSIONS, "*.self_attn*")


@bad("lm_head.weight_scale is there, but lm_head is excluded by 'lm_head'", base="fp8 target")
def scale_of_an_excluded_module(model: BadCheckpoint) -> None:
    _repack(model, {"lm_head.weight_scale": ("F32", [])})


@bad(
    "lm_head.weight is BF16, not FP8, and has no scales: add lm_head to the exclusions",
    base="fp8 target",
)
def plain_head_that_is_not_excluded(model: BadCheckpoint) -> None:
    _exclude(model)


def _leave_plain_tensors(model: BadCheckpoint) -> None:
    shapes = {
        name: entry["shape"]
        for name, entry in model.weights.header.items()
        if not name.endswith("_scale")
    }
    model.weights = pack(shapes)


@bad(
    "(?s)q_proj.weight is BF16, not FP8, and has no scales, nor have 6 more linears: packed weights"
    r" may have been saved as plain ones, without their scales. Take the original export\n"
    r"(?!.*exclu)",
    base="fp8 target",
)
def codes_saved_as_bf16_without_scales(model: BadCheckpoint) -> None:
    """Beside the configuration, as save_pretrained of another tool leaves them."""
    _leave_plain_tensors(model)
    values = np.frombuffer(model.weights.data, ml_dtypes.bfloat16)
    codes = values.astype(ml_dtypes.float8_e4m3fn).astype(ml_dtypes.bfloat16)
    model.weights.data = bytearray(codes.tobytes())


@bad(
    "(?s)q_proj.weight is BF16, not FP8, and has no scales, nor have 6 more linears: the"
    " description may be left over. .*remove quantization_config from config.json",
    base="fp8 target",
)
def description_left_over_plain_weights(model: BadCheckpoint) -> None:
    _leave_plain_tensors(model)


@bad(
    "up_proj.weight is F8_E4M3 and would load unscaled, but .* has no format in quantized_layers",
    base="fp8 target",
)
def module_forgotten_in_mixed_precision(model: BadCheckpoint) -> None:
    layers = {Q: {"quant_algo": "FP8"}}
    model.config["quantization_config"] = {
        "quant_algo": "MIXED_PRECISION",
        "quantized_layers": layers,
    }


@bad(
    "model.layers.7.mlp.up_proj has a format, but this model has no linear of that name",
    base="fp8 target",
)
def format_of_a_module_that_is_not_there(model: BadCheckpoint) -> None:
    layers = {"model.layers.7.mlp.up_proj": {"quant_algo": "FP8"}}
    model.config["quantization_config"] = {
        "quant_algo": "MIXED_PRECISION",
        "quantized_layers": layers,
    }


@bad(
    r"up_proj.weight_scale has \[48\], expected a scalar for the whole tensor",
    base="fp8 target",
)
def fp8_scale_of_each_channel(model: BadCheckpoint) -> None:
    _repack(model, {f"{UP}.weight_scale": ("F32", [48])})


@bad(
    r"wrong dtype: model.layers.0.mlp.up_proj.weight_scale is BF16 \(supported: F32\)",
    base="fp8 target",
)
def fp8_scale_in_bf16(model: BadCheckpoint) -> None:
    _repack(model, {f"{UP}.weight_scale": ("BF16", [])})


@bad(
    r"wrong dtype: model.layers.0.mlp.up_proj.weight_scale is F32 \(supported: F8_E4M3\)",
    base="nvfp4 target",
)
def block_scale_in_f32(model: BadCheckpoint) -> None:
    _repack(model, {f"{UP}.weight_scale": ("F32", [48, 1])})


@bad(
    r"wrong dtype: model.layers.0.mlp.up_proj.weight is I8 \(supported: U8\)",
    base="nvfp4 target",
)
def packed_weight_in_signed_bytes(model: BadCheckpoint) -> None:
    _repack(model, {f"{UP}.weight": ("I8", [48, 8])})


@bad(r"wrong shape: .*up_proj.weight_scale_2 has \[48, 1\], expected \[\]", base="nvfp4 target")
def global_scale_of_each_row(model: BadCheckpoint) -> None:
    _repack(model, {f"{UP}.weight_scale_2": ("F32", [48, 1])})


@bad(
    r"o_proj.weight_scale has \[16, 1\] \(blocks of 32\), expected \[16, 2\] \(blocks of 16\)",
    base="nvfp4 target",
)
def blocks_of_32(model: BadCheckpoint) -> None:
    _repack(model, {"model.layers.0.self_attn.o_proj.weight_scale": ("F8_E4M3", [16, 1])})


@bad(
    r"up_proj.weight has \[48, 16\], expected \[48, 8\]: two values a byte, of 16",
    base="nvfp4 target",
)
def unpacked_codes(model: BadCheckpoint) -> None:
    _repack(model, {f"{UP}.weight": ("U8", [48, 16])})


@bad(
    "down_proj has 40 input features, no multiple of the block of 16 that shares a scale",
    base="nvfp4 target",
)
def input_features_that_blocks_do_not_divide(model: BadCheckpoint) -> None:
    model.config["intermediate_size"] = 40
    _repack(
        model,
        {
            f"model.layers.0.mlp.{name}.weight": ("U8", [40, 8])
            for name in ("gate_proj", "up_proj")
        },
    )
    _repack(
        model,
        {
            f"model.layers.0.mlp.{name}.weight_scale": ("F8_E4M3", [40, 1])
            for name in ("gate_proj", "up_proj")
        },
    )
    _repack(
        model,
        {f"{DOWN}.weight": ("U8", [16, 20]), f"{DOWN}.weight_scale": ("F8_E4M3", [16, 3])},
    )


@bad(
    r"fc is NVFP4, and it must not be quantized: exclude it and quantize again",
    base="nvfp4 drafter",
)
def quantized_fc(model: BadCheckpoint) -> None:
    _exclude(model)


@bad(r"missing: model.layers.0.self_attn.v_proj.v_scale \[\]\n", base="fp8 target")
def cache_with_the_scales_of_keys_alone(model: BadCheckpoint) -> None:
    """Scales that are all missing are 1."""
    _repack(model, {"model.layers.0.self_attn.k_proj.k_scale": ("F32", [])})
    model.config["quantization_config"] |= {
        "kv_cache_scheme": {"num_bits": 8, "type": "float", "dynamic": False}
    }


@bad(r"unexpected: .*k_proj.k_scale \[\]", base="fp8 target")
def cache_scale_without_a_scheme(model: BadCheckpoint) -> None:
    _repack(model, {"model.layers.0.self_attn.k_proj.k_scale": ("F32", [])})


@bad(
    "hf_quant_config.json's quant_algo and config.json's quant_algo contradict each other about the"
    ' format: "nvfp4" against'
    ' "fp8"',
    base="fp8 target",
)
def two_configurations(model: BadCheckpoint) -> None:
    model.files["hf_quant_config.json"] = b'{"quantization": {"quant_algo": "NVFP4"}}'


@bad(r"unexpected: model.embed_tokens.weight_scale \[\]", base="fp8 target")
def quantized_embedding(model: BadCheckpoint) -> None:
    _repack(model, {"model.embed_tokens.weight_scale": ("F32", [])})


_FOREIGN = {
    "calibration_state": (
        "input_quantizer._amax",
        "ModelOpt's calibration state, from save_pretrained",
    ),
    "gptq": ("qweight", "a GPTQ or AWQ checkpoint"),
    "awq_scale": ("pre_quant_scale", "an AWQ checkpoint"),
    "svdquant": ("weight_quantizer_svdquant_lora_a", "an SVDQuant checkpoint"),
    "compressed_tensors": ("weight_packed", "a compressed-tensors checkpoint"),
    "deepseek_fp8": (
        "weight_scale_inv",
        "fine-grained FP8 weights, and config.json's quant_method is not fp8",
    ),
    "bitsandbytes": ("weight.absmax", "a bitsandbytes checkpoint"),
}


def _register(name: str, ending: str, words: str) -> None:
    def spoil(model: BadCheckpoint) -> None:
        _repack(model, {f"{Q}.{ending}": ("F32", [1])})

    spoil.__name__ = f"foreign_{name}"
    bad(rf"q_proj.{ending} \(1 such tensors\) shows {words}", base="nvfp4 target")(spoil)


for _name, (_ending, _words) in _FOREIGN.items():
    _register(_name, _ending, _words)


@bad(r"mlp.experts.down_proj_blocks \(1 such tensors\) shows MXFP4 experts as gpt-oss has them")
def gpt_oss_experts(model: BadCheckpoint) -> None:
    _repack(model, {"model.layers.0.mlp.experts.down_proj_blocks": ("U8", [1])})
