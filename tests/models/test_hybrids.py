"""What hybrid targets read from config.json, beside Hugging Face; what is refused by name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fixtures.tiny_hybrid import HYBRIDS, SIZES, tiny_hybrid
from trtllm_dflash.errors import ConfigError
from trtllm_dflash.models.base import TargetConfig
from trtllm_dflash.models.generation_config import unmet_settings
from trtllm_dflash.models.linear_attention import LinearAttentionConfig
from trtllm_dflash.models.registry import read_target_config
from trtllm_dflash.models.tensor_specs import expand_specs, resolve_shape

LINEAR, FULL = "linear_attention", "full_attention"
IMAGES = "qwen3_5_vl"
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
REMOVED = object()


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    root = tmp_path_factory.mktemp("hybrids")
    paths: dict[str, Path] = {name: tiny_hybrid(root / name, name) for name in HYBRIDS}
    return {
        name: json.loads((path / "config.json").read_text()) for name, path in paths.items()
    }


def changed(config: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a config.json with other keys of the decoder; REMOVED takes one away."""
    copy: dict[str, Any] = json.loads(json.dumps(config))
    text = copy.get("text_config", copy)
    for key, value in changes.items():
        text[key] = value
        if value is REMOVED:
            del text[key]
    return copy


def read(config: dict[str, Any], **changes: Any) -> TargetConfig:
    return read_target_config(changed(config, changes), None, "target /m")


def theirs_of(config: dict[str, Any]) -> Any:
    """Return Hugging Face's configuration of the decoder."""
    transformers = pytest.importorskip("transformers")
    return transformers.AutoConfig.for_model(**config).get_text_config()


@pytest.mark.parametrize("name", HYBRIDS)
def test_a_hybrid_reads_what_transformers_reads(
    name: str, configs: dict[str, dict[str, Any]]
) -> None:
    theirs = theirs_of(configs[name])
    ours = read(configs[name])
    assert ours.model_type == HYBRIDS[name].model_type
    assert [LINEAR if linear else FULL for linear in ours.linear_layers] == theirs.layer_types
    assert ours.linear_attention == LinearAttentionConfig(
        theirs.linear_num_key_heads,
        theirs.linear_num_value_heads,
        theirs.linear_key_head_dim,
        theirs.linear_value_head_dim,
        theirs.linear_conv_kernel_dim,
        fused_projections=name == "qwen3_next",
    )
    assert (ours.head_dim, ours.rope.rotary_dim) == (16, 8)
    assert (ours.qk_norm, ours.gated_attention, ours.norm_offset) == (True, True, 1.0)
    assert ours.windows == (0,) * 6
    assert (ours.moe is not None) == HYBRIDS[name].experts
    if ours.moe is not None:
        assert ours.moe.num_experts == theirs.num_experts
        assert ours.moe.shared_intermediate_size == theirs.shared_expert_intermediate_size
        assert ours.moe.normalize


def test_sizes_of_a_gated_delta_net(configs: dict[str, dict[str, Any]]) -> None:
    sizes = read(configs["qwen3_5"]).linear_attention
    assert sizes is not None
    keys, values = 3 * 12, 9 * 10
    assert (sizes.conv_size, sizes.value_size) == (2 * keys + values, values)
    assert sizes.window_columns == 2 * keys + values + 2 * 9
    assert sizes.qkvz_size == 2 * keys + 2 * values


@pytest.mark.parametrize("name", ["qwen3_next", "qwen3_5", IMAGES])
@pytest.mark.parametrize(
    "changes",
    [
        {"layer_types": REMOVED},
        {"layer_types": None, "num_hidden_layers": 9},
        {"layer_types": REMOVED, "full_attention_interval": 2},
        {"layer_types": REMOVED, "full_attention_interval": 1},
        {"layer_types": [FULL] * 6},
        {"layer_types": [LINEAR, LINEAR, FULL] * 2, "full_attention_interval": 3},
        {"num_key_value_heads": REMOVED, "num_attention_heads": 8},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}},
        {"rope_parameters": REMOVED, "rope_theta": 5000.0},
        {"rope_parameters": REMOVED, "rope_theta": 5e3, "partial_rotary_factor": 0.75},
        {"rope_parameters": REMOVED, "rope_theta": 5e3, "partial_rotary_factor": None},
        {"rope_parameters": {"rope_theta": 5e3, "partial_rotary_factor": 1.0}},
        {"rope_parameters": {"rope_theta": 5e3}, "partial_rotary_factor": 0.51},
        {"rope_parameters": YARN | {"rope_theta": 5e3}},
        {"hidden_act": "swish", "output_gate_type": "swish", "mamba_ssm_dtype": "float32"},
        {"output_router_logits": True, "mtp_num_hidden_layers": 2},
    ],
)
def test_accepted_keys_mean_what_they_mean_there(
    name: str, changes: dict[str, Any], configs: dict[str, dict[str, Any]]
) -> None:
    config = changed(configs[name], changes)
    ours = read_target_config(json.loads(json.dumps(config)), None, "target /m")
    theirs = theirs_of(config)
    assert [LINEAR if linear else FULL for linear in ours.linear_layers] == theirs.layer_types
    assert ours.has_linear_layers == (ours.linear_attention is not None)
    assert ours.num_kv_heads == theirs.num_key_value_heads
    assert ours.rope.theta == theirs.rope_parameters["rope_theta"]
    share = theirs.rope_parameters.get("partial_rotary_factor", 1.0)
    assert ours.rope.rotary_dim == int(theirs.head_dim * share)


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "default"},
        {"rope_type": "linear", "factor": 2.5},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        | {"original_max_position_embeddings": 64},
        YARN,
    ],
)
def test_rope_over_a_part_of_the_head(
    scaling: dict[str, Any], configs: dict[str, dict[str, Any]]
) -> None:
    torch = pytest.importorskip("torch")
    from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5TextRotaryEmbedding

    rope = {"rope_theta": 5000.0, "partial_rotary_factor": 0.75, "mrope_section": [2, 2, 2]}
    changes = {"head_dim": 32, "rope_parameters": rope | scaling}
    ours = read(configs["qwen3_5"], **changes).rope
    theirs = Qwen3_5TextRotaryEmbedding(theirs_of(changed(configs["qwen3_5"], changes)))
    cos, sin = ours.cos_sin(300)
    their_cos, their_sin = theirs(torch.zeros(1), torch.arange(300)[None])
    assert cos.shape == sin.shape == (300, 12)
    np.testing.assert_allclose(cos, their_cos[0, :, :12].numpy(), rtol=0, atol=1e-4)
    np.testing.assert_allclose(sin, their_sin[0, :, :12].numpy(), rtol=0, atol=1e-4)


SHARE = r"expected a share of head_dim = 16 that is an even number"
REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "no gate of attention": (
        {"attn_output_gate": False},
        "attn_output_gate is false, and only true is supported: q_proj is built with a gate",
    ),
    "states in bfloat16": (
        {"mamba_ssm_dtype": "bfloat16"},
        "mamba_ssm_dtype is .bfloat16., .*recurrent states are kept in float32",
    ),
    "another gate": (
        {"output_gate_type": "sigmoid"},
        "output_gate_type is .sigmoid., .*the norm of gated delta nets has that gate",
    ),
    "another activation": ({"hidden_act": "gelu"}, "hidden_act is .gelu., .*built as SwiGLU"),
    "biases": ({"attention_bias": True}, "attention_bias is true, .*no linear .* has a bias"),
    "biases of MLPs": ({"mlp_bias": True}, "mlp_bias is true, .*no linear .* has a bias"),
    "windows": (
        {"layer_types": [LINEAR, "sliding_attention"] * 3},
        r"layer_types\[1\] is .sliding_attention., expected linear_attention or full_attention",
    ),
    "other recurrent layers": (
        {"layer_types": ["mamba", FULL] * 3},
        r"layer_types\[0\] is .mamba., expected linear_attention or full_attention",
    ),
    "too few types": (
        {"layer_types": [FULL]},
        "layer_types has 1 entries, expected num_hidden_layers = 6",
    ),
    "no full layer": (
        {"layer_types": [LINEAR] * 6},
        "layer_types leaves no layer with full_att",
    ),
    "fewer layers than the interval": (
        {"layer_types": REMOVED, "num_hidden_layers": 3},
        "num_hidden_layers leaves no layer with full_attention",
    ),
    "interval against types": (
        {"full_attention_interval": 2},
        "full_attention_interval is 2 but layer_types says otherwise. Make them agree",
    ),
    "no interval": (
        {"layer_types": REMOVED, "full_attention_interval": 0},
        "full_attention_interval is 0, expected at least 1",
    ),
    "key heads that divide nothing": (
        {"linear_num_key_heads": 4},
        "linear_num_key_heads is 4, and does not divide linear_num_value_heads = 9",
    ),
    "more key heads than value heads": (
        {"linear_num_key_heads": 18},
        "linear_num_key_heads is 18, and does not divide linear_num_value_heads = 9",
    ),
    "no key heads": (
        {"linear_num_key_heads": 0},
        "linear_num_key_heads is 0, expected at least",
    ),
    "no value heads": (
        {"linear_num_value_heads": REMOVED},
        "linear_num_value_heads is missing",
    ),
    "half a key": (
        {"linear_key_head_dim": 12.5},
        "linear_key_head_dim is 12.5, expected an int",
    ),
    "no values": (
        {"linear_value_head_dim": -1},
        "linear_value_head_dim is -1, expected at least",
    ),
    "no convolution": (
        {"linear_conv_kernel_dim": 1},
        "linear_conv_kernel_dim is 1, .*at least 2",
    ),
    "a convolution of text": ({"linear_conv_kernel_dim": "4"}, "linear_conv_kernel_dim is .4."),
    "a long convolution": (
        {"linear_conv_kernel_dim": 64},
        "linear_conv_kernel_dim is 64, .*16",
    ),
    "an odd part of the head": (
        {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.2}},
        f"rope_parameters.partial_rotary_factor is 0.2, {SHARE}",
    ),
    "more than the head": (
        {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 1.5}},
        f"rope_parameters.partial_rotary_factor is 1.5, {SHARE}",
    ),
    "no part of the head": (
        {"rope_parameters": {"rope_theta": 1e4}, "partial_rotary_factor": 0.0},
        f"partial_rotary_factor is 0.0, {SHARE}",
    ),
    "two parts of the head": (
        {"partial_rotary_factor": 0.25},
        "rope_parameters.partial_rotary_factor is 0.5 but partial_rotary_factor at the top level",
    ),
    "a RoPE by layer type": (
        {"rope_parameters": {FULL: {"rope_type": "default", "rope_theta": 1e4}}},
        "rope_parameters.full_attention is no parameter of default RoPE",
    ),
    "RoPE of another sort": (
        {"rope_parameters": {"rope_type": "mrope", "rope_theta": 1e4}},
        "rope_parameters.rope_type is .mrope., and only default, linear",
    ),
    "no base of RoPE": ({"rope_parameters": REMOVED}, "the key .*rope_theta is missing"),
}


@pytest.mark.parametrize("name", ["qwen3_5", IMAGES])
@pytest.mark.parametrize("case", REFUSALS)
def test_what_is_not_built_is_refused(
    name: str, case: str, configs: dict[str, dict[str, Any]]
) -> None:
    changes, words = REFUSALS[case]
    section = "text_config." if name == IMAGES else ""
    with pytest.raises(ConfigError, match=words) as caught:
        read(configs[name], **changes)
    start = "target /m: the key " if "is missing" in str(caught.value) else "target /m: "
    assert str(caught.value).startswith(f"{start}{section}")


EXPERT_REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "no size of the shared expert": (
        {"shared_expert_intermediate_size": REMOVED},
        "shared_expert_intermediate_size is missing",
    ),
    "no shared expert": (
        {"shared_expert_intermediate_size": 0},
        "shared_expert_intermediate_size is 0, expected at least 1",
    ),
    "experts in some layers": (
        {"decoder_sparse_step": 2},
        "decoder_sparse_step is 2, and a layer without experts is not supported",
    ),
    "a layer without experts": (
        {"mlp_only_layers": [1]},
        r"mlp_only_layers is \[1\], and a layer without experts is not supported",
    ),
    "more chosen than there are": (
        {"num_experts_per_tok": 8},
        "num_experts_per_tok is 8, expected at least 1 and at most 7",
    ),
    "too many experts": (
        {"num_experts": 1025},
        "num_experts is 1025, expected .* at most 1024",
    ),
    "no size of experts": ({"moe_intermediate_size": None}, "moe_intermediate_size is missing"),
}


@pytest.mark.parametrize("name", ["qwen3_next", "qwen3_5_moe", "qwen3_5_moe_vl"])
@pytest.mark.parametrize("case", EXPERT_REFUSALS)
def test_experts_that_are_not_built_are_refused(
    name: str, case: str, configs: dict[str, dict[str, Any]]
) -> None:
    changes, words = EXPERT_REFUSALS[case]
    with pytest.raises(ConfigError, match=words):
        read(configs[name], **changes)


def test_shares_of_experts(configs: dict[str, dict[str, Any]]) -> None:
    """Qwen3-Next has them of all experts or of the chosen ones, Qwen3.5 only of these."""
    moe = read(configs["qwen3_next"], norm_topk_prob=False).moe
    assert moe is not None
    assert not moe.normalize
    with pytest.raises(ConfigError, match=r"norm_topk_prob is false, .*are of the chosen ones"):
        read(configs["qwen3_5_moe"], norm_topk_prob=False)


@pytest.mark.parametrize(
    ("outer", "inner", "tied"),
    [(True, False, True), (False, True, False), (None, True, True), (None, None, False)],
)
def test_the_outer_tie_counts(
    outer: bool | None, inner: bool | None, tied: bool, configs: dict[str, dict[str, Any]]
) -> None:
    config = configs[IMAGES] | {"tie_word_embeddings": outer}
    assert read(config, tie_word_embeddings=inner).tie_word_embeddings == tied


def test_stop_tokens_of_a_target_with_images(configs: dict[str, dict[str, Any]]) -> None:
    config = changed(configs[IMAGES], {"eos_token_id": 3})
    assert read_target_config(config, None, "m").eos_token_ids == (3,)
    config["eos_token_id"] = [4, 5]
    assert read_target_config(config, None, "m").eos_token_ids == (4, 5)
    assert read_target_config(config, {"eos_token_id": 6}, "m").eos_token_ids == (6,)
    with pytest.raises(ConfigError, match=r"m: eos_token_id is 0.5, expected an integer"):
        read_target_config(config | {"eos_token_id": 0.5}, None, "m")


def test_settings_of_generate_in_the_section(configs: dict[str, dict[str, Any]]) -> None:
    config = changed(configs[IMAGES], {"repetition_penalty": 1.3})
    (warning,) = unmet_settings(None, config)
    assert "config.json sets repetition_penalty 1.3" in warning


def bad_outer(configs: dict[str, dict[str, Any]]) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield config.json files with damage around the decoder's section, and words of the error."""
    images, text = configs[IMAGES], configs["qwen3_5"]
    without = {key: value for key, value in images.items() if key != "text_config"}
    section = images["text_config"]
    yield without, "text_config is missing, and Qwen3_5ForConditionalGeneration has its sizes"
    yield without | {"text_config": [1]}, r"text_config is \[1\], expected an object"
    yield (
        without | {"text_config": section | {"model_type": "qwen3_next"}},
        "text_config.model_type is .qwen3_next., expected 'qwen3_5_text'",
    )
    yield (
        without | {"text_config": section | {"quantization_config": {"quant_algo": "FP8"}}},
        "text_config.quantization_config is not read there. Move it to the top level",
    )
    yield images | {"tie_word_embeddings": 1}, "m: tie_word_embeddings is 1, expected true or"
    yield (
        images | {"architectures": ["Qwen4ExpForConditionalGeneration"]},
        "architectures is .*Qwen4Exp.*, which is not built: Qwen3.8-Flash-Next",
    )
    yield (
        text | {"architectures": ["Qwen4ExpMoeForCausalLM"]},
        "architectures is .*Qwen4Exp.*, which is not built: Qwen3.8-Flash-Next",
    )
    yield (
        text | {"model_type": "qwen3_5"},
        "model_type is .qwen3_5., but Qwen3_5ForCausalLM goes with 'qwen3_5_text'",
    )
    yield (
        images | {"architectures": ["Qwen3_5ForCausalLM"], "model_type": "qwen3_5_text"},
        "the key num_hidden_layers is missing",
    )
    yield text | {"num_experts": 7}, "num_experts is 7, .*this architecture has no experts"


def test_damage_around_the_decoder(configs: dict[str, dict[str, Any]]) -> None:
    for config, words in bad_outer(configs):
        with pytest.raises(ConfigError, match=words):
            read_target_config(config, None, "m")


@pytest.mark.parametrize("name", HYBRIDS)
def test_tensors_follow_the_type_of_their_layer(
    name: str, configs: dict[str, dict[str, Any]]
) -> None:
    config = read(configs[name])
    rows = expand_specs(config.tensors.used, config)
    assert "model.layers.0.linear_attn.A_log" in rows
    assert "model.layers.0.self_attn.q_proj.weight" not in rows
    assert "model.layers.3.linear_attn.A_log" not in rows
    q_proj = rows["model.layers.3.self_attn.q_proj.weight"]
    assert resolve_shape(q_proj, config) == [2 * 6 * 16, SIZES["hidden"]]
