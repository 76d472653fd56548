"""Damage to hybrid targets: gated delta nets, gated attention, shared experts, and the other parts
that models with images store.
"""

from __future__ import annotations

from typing import Any

from tests.bad_checkpoints.hybrid_bases import (
    CHANNELS,
    COUNT,
    DELTA,
    FULL,
    HEAD_DIM,
    HEADS,
    HIDDEN,
    IMAGES,
    MOE,
    NEXT,
    NVFP4,
    QKV,
    QKVZ,
    SIZE,
    STACKED,
    TEXT,
    VALUE_HEADS,
    VALUES,
)
from tests.bad_checkpoints.make_bad import BadCheckpoint, bad
from tests.bad_checkpoints.quantized_cases import _poke, _repack


def _text(model: BadCheckpoint, **changes: Any) -> None:
    """Change keys of the decoder's section."""
    model.config["text_config"] = model.config["text_config"] | changes


def _rename(model: BadCheckpoint, old: str, new: str) -> None:
    """Rename the tensors whose names contain `old`."""
    header = model.weights.header
    model.weights.header = {name.replace(old, new): entry for name, entry in header.items()}


@bad(r"missing: model.language_model.layers.0.linear_attn.A_log \[2\]", base=IMAGES)
def delta_without_decays(model: BadCheckpoint) -> None:
    _repack(model, {f"{TEXT}{DELTA}A_log": None})


@bad(r"missing: .*linear_attn.conv1d.weight \[24, 1, 4\]", base=IMAGES)
def delta_without_convolution(model: BadCheckpoint) -> None:
    _repack(model, {f"{TEXT}{DELTA}conv1d.weight": None})


@bad(
    r"conv1d.weight has \[24, 4\], expected \[24, 1, 4\] = \[linear_attention.conv_size, 1,",
    base=IMAGES,
)
def convolution_of_two_axes(model: BadCheckpoint) -> None:
    _repack(model, {f"{TEXT}{DELTA}conv1d.weight": ("BF16", [CHANNELS, 4])})


@bad(r"conv1d.weight has \[4, 1, 24\], expected \[24, 1, 4\]", base=IMAGES)
def convolution_transposed(model: BadCheckpoint) -> None:
    _repack(model, {f"{TEXT}{DELTA}conv1d.weight": ("BF16", [4, 1, CHANNELS])})


@bad(r"conv1d.weight has \[24, 1, 4\], expected \[24, 1, 3\]", base=IMAGES)
def convolution_of_another_length(model: BadCheckpoint) -> None:
    _text(model, linear_conv_kernel_dim=3)


@bad(r"unexpected: model.language_model.layers.0.linear_attn.conv1d.bias \[24\]", base=IMAGES)
def convolution_with_bias(model: BadCheckpoint) -> None:
    _repack(model, {f"{TEXT}{DELTA}conv1d.bias": ("BF16", [CHANNELS])})


@bad(r"in_proj_qkv.weight has \[24, 16\], expected \[32, 16\] = ", base=IMAGES)
def delta_of_other_sizes(model: BadCheckpoint) -> None:
    _text(model, linear_key_head_dim=8)


@bad(
    r"dt_bias has \[2, 1\], expected \[2\] = \[linear_attention.num_value_heads\]", base=IMAGES
)
def bias_of_steps_with_two_axes(model: BadCheckpoint) -> None:
    _repack(model, {f"{TEXT}{DELTA}dt_bias": ("BF16", [2, 1])})


@bad(r"norm.weight has \[16\], expected \[8\] = \[linear_attention.value_dim\]", base=IMAGES)
def norm_of_all_heads(model: BadCheckpoint) -> None:
    _repack(model, {f"{TEXT}{DELTA}norm.weight": ("BF16", [VALUES])})


@bad(r"A_log has nan at index \[0\]", base=IMAGES)
def decay_nan(model: BadCheckpoint) -> None:
    begin = model.entry(f"{TEXT}{DELTA}A_log")["data_offsets"][0]
    model.weights.data[begin : begin + 2] = b"\xc0\x7f"


@bad(r"wrong dtype: .*A_log is I32 \(supported: F32, F16, BF16\)", base=IMAGES)
def decay_of_integers(model: BadCheckpoint) -> None:
    _repack(model, {f"{TEXT}{DELTA}A_log": ("I32", [VALUE_HEADS])})


@bad(
    r"missing: .*linear_attn.in_proj_qkv.weight \[24, 16\]; .*\n  unexpected: .*in_proj_qkvz",
    base=IMAGES,
)
def projections_of_qwen3_next(model: BadCheckpoint) -> None:
    changes: dict[str, tuple[str, list[int]] | None] = dict.fromkeys(
        f"{TEXT}{DELTA}{name}.weight" for name in QKV
    )
    for name, rows in QKVZ.items():
        changes[f"{TEXT}{DELTA}{name}.weight"] = ("BF16", [rows, HIDDEN])
    _repack(model, changes)


@bad(
    r"q_proj.weight has \[16, 16\], expected \[32, 16\] = \[2\*num_q_heads\*head_dim",
    base=IMAGES,
)
def attention_without_gate(model: BadCheckpoint) -> None:
    shape = [HEADS * HEAD_DIM, HIDDEN]
    _repack(model, {f"{TEXT}{FULL}q_proj.weight": ("BF16", shape)})


@bad("attn_output_gate is false, and only true is supported", base=IMAGES)
def attention_that_states_no_gate(model: BadCheckpoint) -> None:
    _text(model, attn_output_gate=False)


@bad(r"unexpected: model.language_model.layers.1.self_attn.q_proj.bias \[32\]", base=IMAGES)
def attention_with_bias(model: BadCheckpoint) -> None:
    _repack(model, {f"{TEXT}{FULL}q_proj.bias": ("BF16", [2 * HEADS * HEAD_DIM])})


@bad(r"missing: .*layers.1.self_attn.q_norm.weight \[8\]", base=IMAGES)
def attention_without_norm(model: BadCheckpoint) -> None:
    _repack(model, {f"{TEXT}{FULL}q_norm.weight": None})


@bad(
    r"missing: .*layers.1.linear_attn.A_log.*\n  unexpected: .*layers.0.linear_attn.A_log",
    base=IMAGES,
)
def types_of_layers_exchanged(model: BadCheckpoint) -> None:
    _text(model, layer_types=["full_attention", "linear_attention"])


@bad("text_config.layer_types leaves no layer with full_attention", base=IMAGES)
def every_layer_linear(model: BadCheckpoint) -> None:
    _text(model, layer_types=["linear_attention"] * 2)


@bad("text_config.num_hidden_layers leaves no layer with full_attention", base=IMAGES)
def no_types_of_layers(model: BadCheckpoint) -> None:
    _text(model, layer_types=None)


@bad(
    "text_config.partial_rotary_factor is 0.3.*, expected a share of head_dim = 8", base=IMAGES
)
def rope_over_one_dimension(model: BadCheckpoint) -> None:
    _text(model, partial_rotary_factor=0.375)


@bad("text_config is missing, and Qwen3_5ForConditionalGeneration has its sizes", base=IMAGES)
def keys_of_the_decoder_outside(model: BadCheckpoint) -> None:
    model.config |= model.config.pop("text_config") | {"model_type": "qwen3_5"}


@bad("text_config.model_type is .qwen2_5_vl_text., expected 'qwen3_5_text'", base=IMAGES)
def section_of_another_model(model: BadCheckpoint) -> None:
    _text(model, model_type="qwen2_5_vl_text")


@bad("architectures is .*Qwen4ExpForConditionalGeneration.*, which is not built", base=IMAGES)
def the_next_family(model: BadCheckpoint) -> None:
    model.config["architectures"] = ["Qwen4ExpForConditionalGeneration"]


@bad("model.norm.weight is stored twice, also as model.language_model.norm.weight", base=IMAGES)
def norm_under_both_names(model: BadCheckpoint) -> None:
    _repack(model, {"model.norm.weight": ("BF16", [HIDDEN])})


@bad(r"missing: .*\n  unexpected: language_model.model.layers.0", base=IMAGES)
def names_of_another_framework(model: BadCheckpoint) -> None:
    _rename(model, TEXT, "language_model.model.")


@bad(r"missing: .*\n  unexpected: .*audio.encoder.weight \[16\]", base=IMAGES)
def part_that_nobody_knows(model: BadCheckpoint) -> None:
    missing: dict[str, tuple[str, list[int]] | None] = {f"{TEXT}norm.weight": None}
    _repack(model, missing | {"model.audio.encoder.weight": ("BF16", [HIDDEN])})


@bad(r"missing: lm_head.weight \[11, 16\]", base=IMAGES)
def head_that_only_the_section_ties(model: BadCheckpoint) -> None:
    _text(model, tie_word_embeddings=True)
    _repack(model, {"lm_head.weight": None})


@bad("tie_word_embeddings is true, but lm_head.weight is stored and differs", base=IMAGES)
def head_that_the_outer_model_ties(model: BadCheckpoint) -> None:
    model.config["tie_word_embeddings"] = True
    begin, _ = model.entry("lm_head.weight")["data_offsets"]
    model.weights.data[begin] ^= 1


@bad(
    r"missing: .*linear_attn.in_proj_qkv.weight_scale \[24, 1\]",
    base=NVFP4,
)
def quantized_delta_without_scales(model: BadCheckpoint) -> None:
    _repack(model, {f"{TEXT}{DELTA}in_proj_qkv.weight_scale": None})


@bad(r"wrong dtype: .*conv1d.weight is F8_E4M3 \(supported: F32, F16, BF16\)", base=NVFP4)
def quantized_convolution(model: BadCheckpoint) -> None:
    _repack(model, {f"{TEXT}{DELTA}conv1d.weight": ("F8_E4M3", [CHANNELS, 1, 4])})


@bad(
    "in_proj_a.weight is U8 and would load unscaled, but .*is excluded by '\\*in_proj_a'",
    base=NVFP4,
)
def quantized_gates_that_are_excluded(model: BadCheckpoint) -> None:
    _repack(model, {f"{TEXT}{DELTA}in_proj_a.weight": ("U8", [VALUE_HEADS, HIDDEN // 2])})


@bad(r"in_proj_a.weight is BF16, not NVFP4, and has no scales: add .*in_proj_a", base=NVFP4)
def plain_gates_that_are_not_excluded(model: BadCheckpoint) -> None:
    model.config["quantization_config"]["ignore"] = ["*in_proj_b", "*lm_head"]


@bad(r"out_proj.weight_scale_2 has 0.0 at index \[\]", base=NVFP4)
def global_scale_of_a_delta_zero(model: BadCheckpoint) -> None:
    _poke(model, f"{TEXT}{DELTA}out_proj.weight_scale_2", 0.0)


@bad("text_config.quantization_config is not read there. Move it to the top level", base=NVFP4)
def quantization_in_the_section(model: BadCheckpoint) -> None:
    _text(model, quantization_config=model.config.pop("quantization_config"))


@bad(
    r"in_proj_qkv.weight has \[24, 8\], expected \[24, 16\] = .*\n  wrong dtype: .* is U8",
    base=NVFP4,
)
def blocks_of_128_that_are_nvfp4(model: BadCheckpoint) -> None:
    settings = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    kept = ["in_proj_a", "in_proj_b", "lm_head"]
    model.config["quantization_config"] = settings | {"modules_to_not_convert": kept}


@bad(r"missing: .*layers.0.linear_attn.in_proj_ba.weight \[4, 16\]", base=MOE)
def fused_projections_without_gates(model: BadCheckpoint) -> None:
    _repack(model, {f"{NEXT}{DELTA}in_proj_ba.weight": None})


@bad(r"missing: .*layers.1.mlp.shared_expert_gate.weight \[1, 16\]", base=MOE)
def shared_expert_without_gate(model: BadCheckpoint) -> None:
    _repack(model, {f"{NEXT}layers.1.mlp.shared_expert_gate.weight": None})


@bad(r"shared_expert_gate.weight has \[16\], expected \[1, 16\] = \[1, hidden_size\]", base=MOE)
def gate_of_the_shared_expert_with_one_axis(model: BadCheckpoint) -> None:
    _repack(model, {f"{NEXT}layers.0.mlp.shared_expert_gate.weight": ("BF16", [HIDDEN])})


@bad(
    r"shared_expert.up_proj.weight has \[12, 16\], expected \[20, 16\] = \[moe.shared_",
    base=MOE,
)
def shared_expert_of_another_size(model: BadCheckpoint) -> None:
    model.config["shared_expert_intermediate_size"] = 20


@bad("shared_expert_intermediate_size is 0, expected at least 1", base=MOE)
def config_without_shared_expert(model: BadCheckpoint) -> None:
    model.config["shared_expert_intermediate_size"] = 0


@bad(r"mlp_only_layers is \[1\], and a layer without experts is not supported", base=MOE)
def layer_without_experts(model: BadCheckpoint) -> None:
    model.config["mlp_only_layers"] = [1]


@bad(r"missing: .*layers.0.mlp.experts.1.gate_proj.weight \[10, 16\]", base=MOE)
def hybrid_expert_without_a_linear(model: BadCheckpoint) -> None:
    _repack(model, {f"{NEXT}layers.0.mlp.experts.1.gate_proj.weight": None})


@bad("linear_num_key_heads is 3, and does not divide linear_num_value_heads = 2", base=MOE)
def key_heads_that_divide_nothing(model: BadCheckpoint) -> None:
    model.config["linear_num_key_heads"] = 3


@bad("gate_up_proj .1 such tensors. shows experts in one tensor of another shape", base=STACKED)
def stacked_experts_transposed(model: BadCheckpoint) -> None:
    shape = [COUNT, HIDDEN, 2 * SIZE]
    _repack(model, {f"{NEXT}layers.0.mlp.experts.gate_up_proj": ("BF16", shape)})


@bad(r"missing: .*experts.0.down_proj.weight \[16, 10\]; .*experts.2.down_proj", base=STACKED)
def stacked_experts_without_their_second_half(model: BadCheckpoint) -> None:
    _repack(model, {f"{NEXT}layers.1.mlp.experts.down_proj": None})


@bad("experts.down_proj .1 such tensors. shows .* beside linears of each", base=STACKED)
def stacked_experts_beside_linears_of_one(model: BadCheckpoint) -> None:
    name = f"{NEXT}layers.0.mlp.experts.1.down_proj.weight"
    _repack(model, {name: ("BF16", [HIDDEN, SIZE])})


@bad("down_proj .4 such tensors. shows experts in one tensor of another shape", base=STACKED)
def stacked_experts_of_another_number(model: BadCheckpoint) -> None:
    model.config["num_experts"] = COUNT + 1


@bad(
    "norm_topk_prob is false, .*the shares of Qwen3.5's experts are of the chosen", base=STACKED
)
def shares_of_all_experts(model: BadCheckpoint) -> None:
    model.config["norm_topk_prob"] = False
