"""Damage to experts: gpt-oss's MXFP4 blocks and scales, and experts in another layout than the
model's.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np

from tests.bad_checkpoints.make_bad import _COMMON, GOOD, VOCAB, BadCheckpoint, bad, pack_bytes
from tests.bad_checkpoints.quantized_cases import _repack

COUNT, HIDDEN, SIZE, QWEN_SIZE, HEADS, HEAD_DIM = 3, 32, 64, 10, 2, 8
LAYER = "model.layers.0."
EXPERTS = f"{LAYER}mlp.experts"
_CONFIG = _COMMON | {
    "hidden_size": HIDDEN,
    "head_dim": HEAD_DIM,
    "num_experts_per_tok": 2,
    "tie_word_embeddings": False,
}
_GPT_OSS = _CONFIG | {
    "architectures": ["GptOssForCausalLM"],
    "model_type": "gpt_oss",
    "attention_bias": True,
    "intermediate_size": SIZE,
    "num_local_experts": COUNT,
    "layer_types": ["sliding_attention"],
    "sliding_window": 4,
    "quantization_config": {
        "quant_method": "mxfp4",
        "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"],
    },
}
_QWEN3_MOE = _CONFIG | {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "intermediate_size": 48,
    "moe_intermediate_size": QWEN_SIZE,
    "num_experts": COUNT,
    "norm_topk_prob": True,
}


def _attention(*, biases: bool) -> dict[str, list[int]]:
    sizes = {"q": (HEADS * HEAD_DIM, HIDDEN), "k": (HEAD_DIM, HIDDEN), "v": (HEAD_DIM, HIDDEN)}
    sizes["o"] = (HIDDEN, HEADS * HEAD_DIM)
    shapes: dict[str, list[int]] = {
        f"{LAYER}{kind}_layernorm.weight": [HIDDEN] for kind in ("input", "post_attention")
    }
    for name, (rows, columns) in sizes.items():
        shapes[f"{LAYER}self_attn.{name}_proj.weight"] = [rows, columns]
        if biases:
            shapes[f"{LAYER}self_attn.{name}_proj.bias"] = [rows]
    return shapes


def _model(
    config: dict[str, object], shapes: dict[str, list[int]], codes: dict[str, list[int]]
) -> BadCheckpoint:
    shapes |= {"model.embed_tokens.weight": [VOCAB, HIDDEN], "model.norm.weight": [HIDDEN]}
    shapes |= {"lm_head.weight": [VOCAB, HIDDEN]}
    tensors = {}
    for name, shape in shapes.items():
        numbers = (np.arange(np.prod(shape)) * 37 % 101 - 50) / 64
        tensors[name] = ("BF16", shape, numbers.astype(ml_dtypes.bfloat16).tobytes())
    for name, shape in codes.items():
        tensors[name] = (
            "U8",
            shape,
            (np.arange(np.prod(shape)) * 37 % 101 + 50).astype(np.uint8).tobytes(),
        )
    return BadCheckpoint(dict(config), pack_bytes(tensors))


def good_gpt_oss() -> BadCheckpoint:
    """Return a one-layer gpt-oss, nothing spoiled yet."""
    shapes = _attention(biases=True) | {f"{LAYER}self_attn.sinks": [HEADS]}
    shapes |= {f"{LAYER}mlp.router.weight": [COUNT, HIDDEN], f"{LAYER}mlp.router.bias": [COUNT]}
    shapes |= {
        f"{EXPERTS}.gate_up_proj_bias": [COUNT, 2 * SIZE],
        f"{EXPERTS}.down_proj_bias": [COUNT, HIDDEN],
    }
    codes: dict[str, list[int]] = {}
    for kind, rows, columns in (
        ("gate_up_proj", 2 * SIZE, HIDDEN),
        ("down_proj", HIDDEN, SIZE),
    ):
        codes[f"{EXPERTS}.{kind}_blocks"] = [COUNT, rows, columns // 32, 16]
        codes[f"{EXPERTS}.{kind}_scales"] = [COUNT, rows, columns // 32]
    return _model(_GPT_OSS, shapes, codes)


def good_qwen3_moe() -> BadCheckpoint:
    """Return a one-layer Qwen3-MoE, nothing spoiled yet."""
    shapes = _attention(biases=False) | {f"{LAYER}mlp.gate.weight": [COUNT, HIDDEN]}
    shapes |= {f"{LAYER}self_attn.{name}_norm.weight": [HEAD_DIM] for name in "qk"}
    for expert in range(COUNT):
        shapes |= {
            f"{EXPERTS}.{expert}.{part}_proj.weight": [QWEN_SIZE, HIDDEN]
            for part in ("gate", "up")
        }
        shapes[f"{EXPERTS}.{expert}.down_proj.weight"] = [HIDDEN, QWEN_SIZE]
    return _model(_QWEN3_MOE, shapes, {})


OSS, QWEN = "gpt_oss target", "qwen3_moe target"
GOOD |= {OSS: good_gpt_oss, QWEN: good_qwen3_moe}


def _poke(model: BadCheckpoint, name: str, index: int, value: int) -> None:
    model.weights.data[model.entry(name)["data_offsets"][0] + index] = value


@bad(
    r"down_proj_scales has 255 at index \[1, 2, 1\]. It is the exponent of a scale, .*255 is NaN."
    r" Get an intact copy",
    base=OSS,
)
def mxfp4_scale_nan(model: BadCheckpoint) -> None:
    _poke(model, f"{EXPERTS}.down_proj_scales", 32 * 2 + 2 * 2 + 1, 255)


@bad(
    r"gate_up_proj_scales has 253 at index \[0, 0, 0\]. .* at most 252: beyond it numbers leave"
    r" float32",
    base=OSS,
)
def mxfp4_scale_too_large(model: BadCheckpoint) -> None:
    _poke(model, f"{EXPERTS}.gate_up_proj_scales", 0, 253)


@bad(
    r"wrong shape: .*gate_up_proj_blocks has \[3, 128, 2, 8\], expected \[3, 128, 1, 16\] = "
    r"\[moe.num_experts, 2\*moe.intermediate_size, hidden_size/32, 16\]",
    base=OSS,
)
def mxfp4_blocks_of_16(model: BadCheckpoint) -> None:
    _repack(model, {f"{EXPERTS}.gate_up_proj_blocks": ("U8", [COUNT, 2 * SIZE, 2, 8])})


@bad(r"wrong shape: .*down_proj_scales has \[3, 2, 32\], expected \[3, 32, 2\] = ", base=OSS)
def mxfp4_scales_transposed(model: BadCheckpoint) -> None:
    _repack(model, {f"{EXPERTS}.down_proj_scales": ("U8", [COUNT, 2, HIDDEN])})


@bad(r"wrong dtype: .*down_proj_blocks is I8 \(supported: U8\)", base=OSS)
def mxfp4_blocks_in_signed_bytes(model: BadCheckpoint) -> None:
    _repack(model, {f"{EXPERTS}.down_proj_blocks": ("I8", [COUNT, HIDDEN, 2, 16])})


@bad(r"missing: model.layers.0.mlp.experts.gate_up_proj_scales \[3, 128, 1\]", base=OSS)
def mxfp4_without_scales(model: BadCheckpoint) -> None:
    _repack(model, {f"{EXPERTS}.gate_up_proj_scales": None})


@bad(
    r"missing: .*sinks \[2\]; .*router.bias \[3\]; .*experts.down_proj_bias \[3, 32\]", base=OSS
)
def gpt_oss_without_biases_and_sinks(model: BadCheckpoint) -> None:
    names = (f"{LAYER}mlp.router.bias", f"{EXPERTS}.down_proj_bias", f"{LAYER}self_attn.sinks")
    _repack(model, dict.fromkeys(names))


@bad("experts.down_proj has 40 input features, no multiple of the block of 32", base=OSS)
def mxfp4_size_that_blocks_do_not_divide(model: BadCheckpoint) -> None:
    model.config["intermediate_size"] = 40


@bad(
    "gate_up_proj_blocks is there, but nothing says that experts are MXFP4: quantization_config's"
    " quant_method does",
    base=OSS,
)
def mxfp4_without_configuration(model: BadCheckpoint) -> None:
    del model.config["quantization_config"]


@bad(r"down_proj_blocks is there, but .*down_proj is excluded by '\*.down_proj'", base=OSS)
def mxfp4_of_excluded_experts(model: BadCheckpoint) -> None:
    model.config["quantization_config"] = {
        "quant_method": "mxfp4",
        "modules_to_not_convert": ["*.down_proj"],
    }


@bad("experts.gate_up_proj is BF16, not MXFP4: add it to modules_to_not_convert", base=OSS)
def plain_experts_that_are_not_excluded(model: BadCheckpoint) -> None:
    name = f"{EXPERTS}.gate_up_proj"
    changes = {
        f"{name}_blocks": None,
        f"{name}_scales": None,
        name: ("BF16", [COUNT, HIDDEN, 2 * SIZE]),
    }
    _repack(model, changes)


@bad(
    "gate_up_proj_weight_scale .1 such tensors. shows gpt-oss's experts as ModelOpt quantizes them",
    base=OSS,
)
def experts_as_modelopt_quantizes_gpt_oss(model: BadCheckpoint) -> None:
    _repack(
        model,
        {f"{EXPERTS}.gate_up_proj_weight_scale": ("F8_E4M3", [COUNT, HIDDEN // 16, 2 * SIZE])},
    )


@bad(
    "quant_method is mxfp4, in which only the experts of GptOssForCausalLM can be stored",
    base="fp8 target",
)
def mxfp4_of_a_dense_model(model: BadCheckpoint) -> None:
    model.config["quantization_config"] = {"quant_method": "mxfp4"}


@bad(
    r"experts.gate_up_proj \(1 such tensors\) shows experts in one tensor of another shape",
    base=QWEN,
)
def fused_experts_in_gpt_oss_order(model: BadCheckpoint) -> None:
    changes: dict[str, tuple[str, list[int]] | None] = {
        f"{EXPERTS}.gate_up_proj": ("BF16", [COUNT, HIDDEN, 2 * QWEN_SIZE]),
        f"{EXPERTS}.down_proj": ("BF16", [COUNT, HIDDEN, QWEN_SIZE]),
    }
    changes |= {name: None for name in model.weights.header if ".experts." in name}
    _repack(model, changes)


@bad(r"missing: model.layers.0.mlp.experts.2.up_proj.weight \[10, 32\]", base=QWEN)
def expert_without_a_linear(model: BadCheckpoint) -> None:
    _repack(model, {f"{EXPERTS}.2.up_proj.weight": None})


@bad(r"unexpected: model.layers.0.mlp.experts.3.up_proj.weight \[10, 32\]", base=QWEN)
def one_expert_too_many(model: BadCheckpoint) -> None:
    _repack(model, {f"{EXPERTS}.3.up_proj.weight": ("BF16", [QWEN_SIZE, HIDDEN])})


@bad(r"wrong dtype: .*mlp.gate.weight is U8 \(supported: F32, F16, BF16\)", base=QWEN)
def quantized_router(model: BadCheckpoint) -> None:
    _repack(model, {f"{LAYER}mlp.gate.weight": ("U8", [COUNT, HIDDEN])})


@bad(r"missing: .*experts.1.down_proj.weight_scale \[32, 1\]", base=QWEN)
def experts_in_fp8_without_scales(model: BadCheckpoint) -> None:
    _repack(model, {f"{EXPERTS}.1.down_proj.weight": ("F8_E4M3", [HIDDEN, QWEN_SIZE])})
    layers = {f"{EXPERTS}.1.down_proj": {"quant_algo": "FP8"}}
    model.config["quantization_config"] = {
        "quant_algo": "MIXED_PRECISION",
        "quantized_layers": layers,
    }
